import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.http.StreamResponse;
import com.openai.models.chat.completions.ChatCompletionChunk;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import java.util.ArrayList;
import java.util.List;

/** A chat with the SDK for Java through the proxy at $BASE_URL; it prints, as JSON, what came of the model $MODEL. */
public final class Ask {
  public static void main(String[] arguments) {
    OpenAIClient client =
        OpenAIOkHttpClient.builder()
            .baseUrl(System.getenv("BASE_URL") + "/v1")
            .apiKey("x")
            .maxRetries(0)
            .build();
    List<String> came = new ArrayList<>();
    String error = "";
    ChatCompletionCreateParams asked =
        ChatCompletionCreateParams.builder()
            .model(System.getenv("MODEL"))
            .addUserMessage("Hello")
            .build();
    try (StreamResponse<ChatCompletionChunk> chunks =
        client.chat().completions().createStreaming(asked)) {
      chunks.stream()
          .forEach(chunk -> came.add('"' + chunk.choices().get(0).delta().content().orElse("") + '"'));
    } catch (RuntimeException caught) {
      Throwable cause = caught;
      while (cause.getCause() != null) cause = cause.getCause();
      error = cause.getClass().getSimpleName();
    }
    client.close();
    System.out.println(
        "{\"came\":[" + String.join(",", came) + "],\"error\":\"" + error + "\"}");
    System.exit(0);
  }
}
