"""What an answer used: each vendor's words for it, made into counts that are disjoint."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.usage import KINDS, LARGEST, Counts, cost_of, counted, others_of, tools_of

ANTHROPICS = {"input_tokens": 5, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 700}


@pytest.mark.parametrize(
    ("dialect", "told", "counts"),
    [
        ("chat", {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, {"input": 9, "output": 2}),
        (
            "chat",  # OpenAI's prompt has the cached ones and the heard ones in it
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 5},
            },
            {"input": 30, "cache_read": 60, "audio_in": 10, "output": 25, "reasoning": 20, "audio_out": 5},
        ),
        (
            "chat",  # xAI's reasoning stands beside what came out
            {
                "prompt_tokens": 40,
                "completion_tokens": 6,
                "total_tokens": 53,
                "completion_tokens_details": {"reasoning_tokens": 7},
            },
            {"input": 40, "output": 6, "reasoning": 7},
        ),
        (
            "chat",  # DeepSeek
            {"prompt_tokens": 8, "completion_tokens": 1, "prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 2},
            {"input": 2, "cache_read": 6, "output": 1},
        ),
        (
            "chat",  # a Claude behind chat, whose prompt has its cache in it
            {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 3},
            {"input": 7, "cache_read": 40, "cache_write": 3, "output": 1},
        ),
        (
            "chat",  # and one whose prompt has not
            {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 94, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 3},
            {"input": 50, "cache_read": 40, "cache_write": 3, "output": 1},
        ),
        ("messages", {**ANTHROPICS, "output_tokens": 9}, {"input": 5, "cache_read": 700, "cache_write": 30, "output": 9}),
        (
            "messages",  # with what is kept for an hour, and thought
            {
                **ANTHROPICS,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 9,
                "output_tokens_details": {"thinking_tokens": 4},
            },
            {"input": 5, "cache_read": 700, "cache_write": 10, "cache_write_1h": 20, "output": 5, "reasoning": 4},
        ),
        (
            "messages",  # a compaction stands in its turns only
            {
                **ANTHROPICS,
                "output_tokens": 9,
                "iterations": [
                    {"type": "compaction", "input_tokens": 1, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 3, "output_tokens": 4},
                    {"type": "message", **ANTHROPICS, "output_tokens": 9},
                ],
            },
            {"input": 6, "cache_read": 702, "cache_write": 33, "output": 13},
        ),
        (
            "responses",
            {
                "input_tokens": 30,
                "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 4},
                "output_tokens": 20,
                "output_tokens_details": {"reasoning_tokens": 15},
                "total_tokens": 50,
            },
            {"input": 16, "cache_read": 10, "cache_write": 4, "output": 5, "reasoning": 15},
        ),
        (
            "gemini",
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 30,
                "candidatesTokenCount": 50,
                "thoughtsTokenCount": 7,
                "toolUsePromptTokenCount": 200,
                "totalTokenCount": 357,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 60}, {"modality": "AUDIO", "tokenCount": 40}],
                "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 25}, {"modality": "TEXT", "tokenCount": 5}],
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 45}],
            },
            {"input": 255, "cache_read": 30, "audio_in": 15, "output": 5, "reasoning": 7, "image_out": 45},
        ),
        (
            "chat",  # Cohere bills fewer than it counts
            {"billed_units": {"input_tokens": 3, "output_tokens": 4}, "tokens": {"input_tokens": 90, "output_tokens": 8, "reasoning_tokens": 1}, "cached_tokens": 80},
            {"input": 3, "output": 3, "reasoning": 1},
        ),
        ("chat", {"tokens": {"input_tokens": 90, "output_tokens": 8}, "cached_tokens": 80}, {"input": 10, "cache_read": 80, "output": 8}),
        ("embeddings", {"total_tokens": 12}, {"input": 12}),
        ("embeddings", {"prompt_tokens": 12, "total_tokens": 12}, {"input": 12}),
        ("chat", {"total_tokens": 12}, {}),
        (
            "images",
            {"input_tokens": 50, "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}, "output_tokens": 1000, "total_tokens": 1050},
            {"input": 50, "output": 0, "image_out": 1000},
        ),
        (
            "audio",
            {"type": "tokens", "input_tokens": 30, "input_token_details": {"text_tokens": 2, "audio_tokens": 28}, "output_tokens": 3, "total_tokens": 33},
            {"input": 2, "audio_in": 28, "output": 3},
        ),
        ("audio", {"type": "duration", "seconds": 9}, {}),
    ],
)  # fmt: skip
def test_vendors(dialect: str, told: dict[str, Any], counts: dict[str, int]) -> None:
    """What a vendor tells becomes counts of which none holds another, without a conflict."""
    read, conflict = counted(told, dialect)
    assert (read.told(), conflict) == (counts, False)


@pytest.mark.parametrize(
    ("told", "counts"),
    [
        (  # more from the cache than there was
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}},
            {"input": 5, "cache_read": 8, "output": 1},
        ),
        (  # more thought than came out
            {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "completion_tokens_details": {"reasoning_tokens": 4}},
            {"input": 5, "output": 1, "reasoning": 4},
        ),
        ({"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 9}, {"input": 5, "output": 1}),
        (
            {"input_tokens": 5, "cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2}},
            {"input": 5, "cache_write": 7, "cache_write_1h": 2},
        ),
        ({"promptTokenCount": 5, "candidatesTokenCount": 1, "totalTokenCount": 9}, {"input": 5, "output": 1}),
        ({"promptTokenCount": 5, "cachedContentTokenCount": 9}, {"input": 5, "cache_read": 9}),
    ],
)  # fmt: skip
def test_conflicts(told: dict[str, Any], counts: dict[str, int]) -> None:
    """What does not add up stands as it was told, and says that it does not."""
    read, conflict = counted(told, "chat")
    assert (read.told(), conflict) == (counts, True)


def test_sums() -> None:
    """The sums have the cache and all that came out in them, and are None where nothing was told."""
    counts = Counts(**{kind: 10**at for at, kind in enumerate(KINDS)})
    assert (counts.tokens_in, counts.tokens_out) == (1001111, 110110000)
    assert (Counts().tokens_in, Counts().tokens_out) == (None, None)


BAD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(max_value=-1),
    st.integers(min_value=LARGEST + 1),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.none(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=1),
)
NAMES = (
    "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens",
    "prompt_tokens_details", "completion_tokens_details", "cached_tokens", "cache_creation",
    "cache_creation_input_tokens", "iterations", "promptTokenCount", "promptTokensDetails", "candidatesTokensDetails",
    "totalTokenCount", "billed_units", "tokens", "cost", "cost_in_usd_ticks", "is_byok", "cost_details",
    "server_tool_use", "num_search_queries",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), BAD), st.sampled_from(["chat", "images", "rerank"]))
def test_bad_values(told: dict[str, Any], dialect: str) -> None:
    """What is no count is none: negative, huge, a float, a text, a list; nothing breaks on it."""
    counts, _ = counted(told, dialect)
    assert not any(counts.told().values())
    cost_of(told), others_of(told, dialect)
    assert tools_of(told) == {}


@given(
    st.dictionaries(st.sampled_from(NAMES[:5]), st.integers(0, 1000)),
    st.dictionaries(
        st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens"]),
        st.integers(0, 1000),
    ),
    st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens"]), st.integers(0, 1000)),
)
def test_sum_to_the_total(told: dict[str, Any], ins: dict[str, int], outs: dict[str, int]) -> None:
    """Either the counts add up to the vendor's own total, or they say that they do not; none is negative."""
    told |= {"prompt_tokens_details": ins, "completion_tokens_details": outs}
    counts, conflict = counted(told, "chat")
    total, read = told.get("total_tokens"), counts.told()
    assert all(count >= 0 for count in read.values())
    if (
        total is not None
        and counts.input is not None
        and counts.output is not None
        and not conflict
    ):
        assert sum(read.values()) == total


@pytest.mark.parametrize(
    ("told", "cost"),
    [
        ({"cost": 0.00051}, "0.00051"),
        ({"cost": 7.159e-05}, "0.00007159"),
        ({"cost": 0}, "0"),
        ({"cost": {"input_tokens_cost": 1, "total_cost": 0.005}}, "0.005"),
        ({"cost": 0.1, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, "0.3"),
        ({"cost": 0.1, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.2}}, "0.1"),
        ({"cost": 0.1, "is_byok": True, "cost_details": None}, "0.1"),
        ({"cost_in_usd_ticks": 1633800}, "0.00016338"),
        ({"cost_in_usd_ticks": 0}, None),
        ({"cost": None}, None),
        ({"cost": True}, None),
        ({"cost": -1}, None),
        ({"cost": "1"}, None),
        ({"cost": float("inf")}, None),
        ({}, None),
    ],
)
def test_cost(told: dict[str, Any], cost: str | None) -> None:
    """What a vendor says that it cost is taken to the last digit; nothing is made of what it does not say."""
    assert cost_of(told) == (None if cost is None else Decimal(cost))


def test_tools() -> None:
    """The vendor's own tools are counted apart, by its names for them."""
    assert tools_of({"server_tool_use": {"web_search_requests": 2, "other": 0}}) == {
        "web_search_requests": 2
    }
    assert tools_of({"num_search_queries": 3, "num_sources_used": 0}) == {"num_search_queries": 3}
    assert tools_of({"billed_units": {"search_units": 1, "input_tokens": 9}}) == {"search_units": 1}
    assert tools_of({"prompt_tokens": 1}) == {}
    many = {f"tool_{n}": 1 for n in range(99)}
    assert len(tools_of({"server_tool_use": many})) == 16


def test_others() -> None:
    """What another model was asked besides is told by its name, and in none of the counts."""
    told = {
        "input_tokens": 1,
        "output_tokens": 2,
        "iterations": [
            {"type": "message", "model": "m", "input_tokens": 1, "output_tokens": 2},
            {"type": "advisor_message", "model": "a", "input_tokens": 30, "output_tokens": 40},
            "no turn",
        ],
    }
    assert counted(told, "messages") == (Counts(input=1, output=2), False)
    assert others_of(told, "messages") == (("a", Counts(input=30, output=40)),)
