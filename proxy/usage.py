"""What an answer used: the one vocabulary for log, ledger, labels and prices, and how each vendor says it.

Vendors count the same things in ways that overlap: OpenAI's `prompt_tokens` has the cached ones in it,
Anthropic's `input_tokens` has not; most count reasoning in what they call completion, xAI and Gemini
beside it. Here the counts are disjoint, so that they add up and each has one price. What is missing is
None and never guessed, and what does not add up to the vendor's own total says so (`conflict`).
Sans I/O; docs/usage.md has the table.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

LARGEST = 10**15
"""A count above it is none."""
NAME_CHARS = 60
"""Bounds the names of server tools and the like, as their vendors write them."""
TOOLS = 16
"""So many server tools are told of one answer at most."""
OTHERS = 8
"""So many other models are told of one answer at most."""

Tree = Mapping[str, Any]
_NOTHING: Tree = {}


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one model, by kind, each apart from all others; None where nobody says."""

    input: int | None = None
    """Neither from the cache nor put into it, and no audio."""
    cache_read: int | None = None
    cache_write: int | None = None
    """For as long as is usual: five minutes at Anthropic."""
    cache_write_1h: int | None = None
    output: int | None = None
    """Neither reasoning nor audio nor images."""
    reasoning: int | None = None
    audio_in: int | None = None
    audio_out: int | None = None
    image_out: int | None = None

    @property
    def tokens_in(self) -> int | None:
        """Return all that went in, the cache included, as OpenTelemetry counts."""
        read, write, hour = self.cache_read, self.cache_write, self.cache_write_1h
        told = (self.input or 0) + (read or 0) + (write or 0) + (hour or 0) + (self.audio_in or 0)
        if not told and self.input is read is write is hour is self.audio_in is None:
            return None
        return told

    @property
    def tokens_out(self) -> int | None:
        """Return all that came out, reasoning included."""
        thought, spoken, drawn = self.reasoning, self.audio_out, self.image_out
        told = (self.output or 0) + (thought or 0) + (spoken or 0) + (drawn or 0)
        if not told and self.output is thought is spoken is drawn is None:
            return None
        return told

    def told(self) -> dict[str, int]:
        """Return the counts that were told, by their names."""
        every = zip(KINDS, msgspec.structs.astuple(self), strict=True)
        return {kind: count for kind, count in every if count is not None}


KINDS = Counts.__struct_fields__
"""The names of the counts, in their order."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer says that it used.

    *model* is the one that the answer names, *cost* what its vendor says that it cost, in dollars, and
    *tools* how often the vendor has called tools of its own. *others* are models that the vendor has
    asked besides, whose tokens are in none of the counts. *conflict*: the counts do not add up to what
    the vendor gives as their sum. *partial*: more may have been used, because the answer broke off.
    *unread*: the answer is complete, and could not be read for what it says.
    """

    counts: Counts = Counts()
    finish_reason: str | None = None
    model: str | None = None
    service_tier: str | None = None
    cost: Decimal | None = None
    tools: dict[str, int] = {}
    others: tuple[tuple[str, Counts], ...] = ()
    conflict: bool = False
    partial: bool = False
    unread: bool = False


UNTOLD = Usage()
"""What is known of an answer that tells nothing."""


def counted(told: Tree, dialect: str) -> tuple[Counts, bool]:
    """Return the counts that a vendor's usage object has *told* in an answer of *dialect*, and whether they conflict."""
    if not _GOOGLES.isdisjoint(told):
        return _gemini(told)
    if "billed_units" in told or "tokens" in told:
        return _cohere(told)
    counts, conflict = _usual(told, dialect)
    if "iterations" in told:
        counts = _with_turns(told, dialect, counts)
    return counts, conflict


def others_of(told: Tree, dialect: str) -> tuple[tuple[str, Counts], ...]:
    """Return which other models a vendor says, by what it has *told*, that it has asked, and for what."""
    return tuple(
        (turn["model"][:NAME_CHARS], _usual(turn, dialect)[0])
        for turn in _iterations(told)
        if _is_foreign(turn)
    )[:OTHERS]


def cost_of(told: Tree) -> Decimal | None:
    """Return what a vendor says, in what it has *told*, that the answer cost, in dollars."""
    if "cost" in told:
        cost = told["cost"]
        if isinstance(cost, Mapping):  # Perplexity's
            cost = cost.get("total_cost")
        dollars = _money(cost)
        if dollars is not None:
            if told.get("is_byok") is True:  # then it is only the share of who stands between
                dollars += _money(_tree(told, _COST).get("upstream_inference_cost")) or 0
            return dollars
    ticks = _count(told, "cost_in_usd_ticks")  # xAI's; 0 where somebody else sends the bill
    return Decimal(ticks) / 10**10 if ticks else None


_COST = ("cost_details",)


def tools_of(told: Tree) -> dict[str, int]:
    """Return how often which tool of the vendor's own was called, of what it has *told*."""
    if _TOOLS.keys().isdisjoint(told):  # nearly always
        return _NO_TOOLS
    found: dict[str, int] = {}
    for place, inside in _TOOLS.items():
        tree = _tree(told, (place,)) if inside else told
        for name in (place,) if not inside else tree if inside is _ALL else inside:
            count = _count(tree, name)
            if count and len(found) < TOOLS:
                found[name[:NAME_CHARS]] = count
    return found


_NO_TOOLS: dict[str, int] = {}
_ALL = ("",)
_TOOLS: Mapping[str, tuple[str, ...]] = {
    "server_tool_use": _ALL,  # Anthropic, OpenRouter
    "server_tool_use_details": _ALL,  # OpenRouter
    "server_side_tool_usage_details": _ALL,  # xAI
    "billed_units": ("search_units",),  # Cohere
    "num_search_queries": (),  # Perplexity
    "citation_tokens": (),
    "num_sources_used": (),  # xAI
}
"""Where tools are told of, and which of what stands there: all, or some; where none is named, it is a count."""

# By vendor


def _usual(told: Tree, dialect: str) -> tuple[Counts, bool]:
    """Read OpenAI's form and Anthropic's, and what others have made of them."""
    said_in = _count(told, "prompt_tokens", "input_tokens")
    said_out = _count(told, "completion_tokens", "output_tokens")
    total = _count(told, "total_tokens")
    outs = _tree(told, _DETAILS_OUT)
    if dialect in _SPECIAL:
        if said_in is None and said_out is None and dialect != "images":
            said_in = total  # nothing comes out of them
        elif not outs and dialect == "images":
            outs = {"image_tokens": said_out}  # by OpenAI's own words, they are of the image
    reasoning = _count(outs, "reasoning_tokens", "thinking_tokens")
    if reasoning is None:
        reasoning = _count(told, "reasoning_tokens")
    spoken, drawn = _count(outs, "audio_tokens"), _count(outs, "image_tokens")
    read, write, hour, heard, agrees = _ins(told)
    cached = (read or 0) + (write or 0) + (hour or 0)
    known = (said_in or 0) + (said_out or 0)
    beside_in = beside_out = 0  # what is in neither of the two
    if total is not None and total != known:
        if total == known + (reasoning or 0):  # xAI's
            beside_out = reasoning or 0
        elif total == known + cached:
            beside_in = cached
    if not beside_in and total != known and _by_anthropic(told):
        beside_in = cached
    rest_in = None if said_in is None else said_in - cached - (heard or 0) + beside_in
    rest_out = None
    if said_out is not None:
        rest_out = said_out - (reasoning or 0) - (spoken or 0) - (drawn or 0) + beside_out
    if rest_in is not None and rest_in < 0:  # what is greater than the whole is no part of it
        rest_in, agrees = said_in, False
    if rest_out is not None and rest_out < 0:
        rest_out, agrees = said_out, False
    counts = Counts(
        input=rest_in,
        cache_read=read,
        cache_write=write,
        cache_write_1h=hour,
        output=rest_out,
        reasoning=reasoning,
        audio_in=heard,
        audio_out=spoken,
        image_out=drawn,
    )
    if total is not None and said_in is not None and said_out is not None:
        agrees = agrees and total == known + beside_in + beside_out
    return counts, not agrees


_SPECIAL = frozenset({"embeddings", "rerank", "images"})
_DETAILS_IN = (
    "prompt_tokens_details",
    "input_tokens_details",
    "prompt_token_details",
    "input_token_details",
)
_DETAILS_OUT = (
    "completion_tokens_details",
    "output_tokens_details",
    "completion_token_details",
    "output_token_details",
)


def _by_anthropic(told: Tree) -> bool:
    """Return whether the names are those of Anthropic, whose input has nothing of the cache in it."""
    return "input_tokens" in told and (
        "cache_read_input_tokens" in told or "cache_creation_input_tokens" in told
    )


def _ins(told: Tree) -> tuple[int | None, int | None, int | None, int | None, bool]:
    """Return what was *told* to be read from the cache and written to it, for short and for an hour, what was
    heard, and whether it agrees.
    """
    ins = _tree(told, _DETAILS_IN)
    read = _count(ins, "cached_tokens")
    if read is None:
        read = _count(told, "prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
    write = _count(ins, "cache_write_tokens", "cache_creation_tokens")
    if write is None:
        write = _count(told, "cache_creation_input_tokens")
    heard = _count(ins, "audio_tokens")
    if heard and "cached_tokens_details" in ins:
        cached = _count(_tree(ins, _CACHED), "audio_tokens") or 0
        heard -= min(heard, cached)
    if "cache_creation" not in told:
        return read, write, None, heard, True
    lasting = _tree(told, _CREATION)
    hour = _count(lasting, "ephemeral_1h_input_tokens")
    short = _count(lasting, "ephemeral_5m_input_tokens")
    if write is None or write == (hour or 0) + (short or 0):
        return read, write if short is None else short, hour, heard, True
    if hour is None or hour > write:
        return read, write, None, heard, hour is None
    return read, write - hour, hour, heard, short is None


_CACHED = ("cached_tokens_details",)
_CREATION = ("cache_creation",)


_GOOGLES = frozenset({"promptTokenCount", "candidatesTokenCount", "totalTokenCount"})


def _gemini(told: Tree) -> tuple[Counts, bool]:
    """Read Google's: what tools have fetched goes in too, and thoughts come beside the candidates."""
    prompt, fetched = _count(told, "promptTokenCount"), _count(told, "toolUsePromptTokenCount")
    out, total = _count(told, "candidatesTokenCount"), _count(told, "totalTokenCount")
    read, thought = _count(told, "cachedContentTokenCount"), _count(told, "thoughtsTokenCount")
    ins = _modal(told, "promptTokensDetails")
    cached = _modal(told, "cacheTokensDetails")
    outs = _modal(told, "candidatesTokensDetails")
    heard = _sum((ins.get("AUDIO"), _modal(told, "toolUsePromptTokensDetails").get("AUDIO")))
    if heard is not None:
        heard = max(0, heard - cached.get("AUDIO", 0))
    spoken, drawn = outs.get("AUDIO"), outs.get("IMAGE")
    rest_in, fits_in = _rest(_sum((prompt, fetched)), read, heard)
    rest_out, fits_out = _rest(out, spoken, drawn)
    counts = Counts(
        input=rest_in,
        cache_read=read,
        output=rest_out,
        reasoning=thought,
        audio_in=heard,
        audio_out=spoken,
        image_out=drawn,
    )
    agrees = fits_in and fits_out
    if prompt is not None and total is not None:
        agrees = agrees and total == _sum((prompt, fetched, out, thought))
    return counts, not agrees


def _cohere(told: Tree) -> tuple[Counts, bool]:
    """Read Cohere's: what is billed, where it says that; the other counts have its own templates in them."""
    used, billed = _tree(told, ("tokens",)), _tree(told, ("billed_units",))
    read = None if billed else _count(told, "cached_tokens")
    thought = _count(used, "reasoning_tokens")
    rest_in, fits_in = _rest(_count(billed or used, "input_tokens"), read)
    rest_out, fits_out = _rest(_count(billed or used, "output_tokens"), thought)
    counts = Counts(input=rest_in, cache_read=read, output=rest_out, reasoning=thought)
    return counts, not (fits_in and fits_out)


def _with_turns(told: Tree, dialect: str, counts: Counts) -> Counts:
    """Return *counts* with all of Anthropic's own turns, of which a compaction stands nowhere else."""
    own = [_usual(turn, dialect)[0] for turn in _iterations(told) if not _is_foreign(turn)]
    if not own:
        return counts
    sums = {kind: _sum(getattr(turn, kind) for turn in own) for kind in KINDS}
    sums["reasoning"] = counts.reasoning  # which no turn says
    sums["output"], _ = _rest(sums["output"], counts.reasoning)
    return Counts(**sums)


def _iterations(told: Tree) -> list[Tree]:
    """Return what Anthropic says of each of its turns."""
    turns = told.get("iterations")
    return [turn for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []


def _is_foreign(turn: Tree) -> bool:
    """Return whether a *turn* was another model's, as an advisor's is; its counts stand here only."""
    return isinstance(turn.get("model"), str) and turn.get("type") not in ("message", "compaction")


# Reading what may be anything


def _count(told: Tree, *names: str) -> int | None:
    """Return the first count that *told* has under one of *names*."""
    for name in names:
        value = told.get(name)
        if type(value) is int and 0 <= value <= LARGEST:
            return value
    return None


def _tree(told: Tree, names: tuple[str, ...]) -> Tree:
    """Return the first object that *told* has under one of *names*, an empty one where there is none."""
    for name in names:
        value = told.get(name)
        if type(value) is dict:
            return value
    return _NOTHING


def _modal(told: Tree, name: str) -> dict[str, int]:
    """Return the counts of a list of Google's, by modality."""
    found: dict[str, int] = {}
    parts = told.get(name)
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Mapping) and isinstance(part.get("modality"), str):
            count = _count(part, "tokenCount")
            if count is not None:
                found[part["modality"]] = found.get(part["modality"], 0) + count
    return found


def _rest(whole: int | None, *parts: int | None) -> tuple[int | None, bool]:
    """Return what is left of *whole* without its *parts*, and whether they fit: what is greater than the
    whole is no part of it, and then all stand as they were told.
    """
    if whole is None:
        return None, True
    rest = whole - (_sum(parts) or 0)
    return (whole, False) if rest < 0 else (rest, True)


def _sum(counts: Iterable[int | None]) -> int | None:
    told = [count for count in counts if count is not None]
    return sum(told) if told else None


def _money(value: Any) -> Decimal | None:
    """Return *value*, a number of JSON, exactly as it is written."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return Decimal(str(value)) if 0 <= value <= LARGEST else None
