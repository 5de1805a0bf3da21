// Streams through the proxy at $BASE_URL with the SDK for Go that $SDK names: `old` is 1.12, whose decoder
// took an empty line behind a comment for an event, `new` a current one. It prints, as JSON, what came of
// the chat $MODEL, and the error that ended it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	older "github.com/openai/openai-go"
	olderoption "github.com/openai/openai-go/option"
	newer "github.com/openai/openai-go/v3"
	neweroption "github.com/openai/openai-go/v3/option"
)

type said struct {
	Came  []string `json:"came"`
	Error string   `json:"error"`
}

func ask(base, model string) said {
	out := said{Came: []string{}}
	ctx := context.Background()
	if os.Getenv("SDK") == "old" {
		client := older.NewClient(olderoption.WithBaseURL(base), olderoption.WithAPIKey("x"), olderoption.WithMaxRetries(0))
		stream := client.Chat.Completions.NewStreaming(ctx, older.ChatCompletionNewParams{
			Model: model, Messages: []older.ChatCompletionMessageParamUnion{older.UserMessage("Hello")},
		})
		for stream.Next() {
			for _, choice := range stream.Current().Choices {
				out.Came = append(out.Came, choice.Delta.Content)
			}
		}
		out.Error = text(stream.Err())
		return out
	}
	client := newer.NewClient(neweroption.WithBaseURL(base), neweroption.WithAPIKey("x"), neweroption.WithMaxRetries(0))
	stream := client.Chat.Completions.NewStreaming(ctx, newer.ChatCompletionNewParams{
		Model: model, Messages: []newer.ChatCompletionMessageParamUnion{newer.UserMessage("Hello")},
	})
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			out.Came = append(out.Came, choice.Delta.Content)
		}
	}
	out.Error = text(stream.Err())
	return out
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func main() {
	told, _ := json.Marshal(ask(os.Getenv("BASE_URL")+"/v1/", os.Getenv("MODEL")))
	fmt.Println(string(told))
}
