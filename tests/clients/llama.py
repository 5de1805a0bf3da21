"""LlamaIndex's usual calls, at $BASE_URL with the key $OAI: a vendor, or the proxy in front of it.

A script, run by an interpreter of its own: LlamaIndex wants an older OpenAI SDK than the one that is
tried beside it. What it needs is locked in `llama.txt`. It prints what each call returned, as JSON.
"""

import asyncio
import json
import os
from typing import Any

from llama_index.core.llms import ChatMessage  # type: ignore[import-not-found]  # see above
from llama_index.core.tools import FunctionTool  # type: ignore[import-not-found]
from llama_index.embeddings.openai import OpenAIEmbedding  # type: ignore[import-not-found]
from llama_index.llms.openai import OpenAI, OpenAIResponses  # type: ignore[import-not-found]

API: dict[str, Any] = {
    "api_base": f"{os.environ['BASE_URL']}/v1",
    "api_key": os.environ["OAI"],
    "max_retries": 0,
}
ASKED = "How is the weather in Oslo?"


def weather(city: str) -> str:
    """Return the weather."""
    return f"rain in {city}"


async def usual(model: Any) -> list[Any]:
    """Ask *model* in the usual ways, and let it call a tool."""
    messages = [ChatMessage(role="user", content=ASKED)]
    plain = [model.chat(messages), await model.achat(messages)]
    parts = (
        list(model.stream_chat(messages)),
        [part async for part in await model.astream_chat(messages)],
    )
    texts = [reply.message.content for reply in plain]
    texts += ["".join(part.delta or "" for part in all) for all in parts]
    tool = FunctionTool.from_defaults(weather)
    reply = model.chat_with_tools([tool], user_msg=ASKED)
    (called,) = model.get_tool_calls_from_response(reply)
    return [*texts, model.complete(ASKED).text, called.tool_name, called.tool_kwargs]


async def embedded() -> list[Any]:
    model = OpenAIEmbedding(model="text-embedding-3-small", **API)
    return [*model.get_text_embedding_batch(["a", "b"]), await model.aget_query_embedding("a")]


async def main() -> None:
    said = {
        "chat": await usual(OpenAI(model="gpt-4o", **API)),
        "responses": await usual(OpenAIResponses(model="gpt-4o", **API)),
        "embeddings": await embedded(),
    }
    print(json.dumps(said))


asyncio.run(main())
