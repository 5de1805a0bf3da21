"""What vendors mean by their errors: the one table of the shapes in which they say it (sans I/O).

A status does not tell: a prompt that is too long comes as 400, 413 or 422, and a dead key as 400 or
403 too. What tells is a code, which every vendor spells in its own way and puts in its own place, or,
where there is none, how the message is worded. `read` knows both; what it does not know, it leaves
alone.

A message may quote what a caller has sent, and what a credential's rest hangs on must not be a
caller's to say. So the words by which a credential or an account is known are those with which a
message begins, and not even those count that the request has in it (`hearsay`); and what holds for
this request only, as a model that is not ours to use, is told from what holds for all (`PERMISSION`).
"""

import re
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any

import msgspec

LOOKED_AT = frozenset({400, 402, 403, 413, 422})
"""Look at the body of these statuses for what they mean. A 401 means one thing."""
BYTES = 64 * 1024
"""Unpack no more than this of a body."""
DEPTH = 6
"""Look this deep in a body for what a vendor means."""


class Meaning(Enum):
    """What an error means for where a request may go next."""

    CREDENTIAL = "credential"
    """Our credential was refused: it is wrong, expired or revoked."""
    ACCOUNT = "account"
    """What stands behind our credential was refused: the account, its credit, or its region. Another one
    may fare better.
    """
    PERMISSION = "permission"
    """Our credential may not do this, or its account cannot pay for it. Another one may fare better, and so
    may other requests with this one.
    """
    TOO_LONG = "too_long"
    """The request is longer than the model's context."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One row: an answer of one of *statuses* means *meaning* where one of its codes is among *codes*
    (in lower case), or where *words* match: what a message begins with, or with *anywhere* any part.
    """

    meaning: Meaning
    statuses: frozenset[int]
    codes: frozenset[str]
    words: str
    anywhere: bool = False


def _words(*alternatives: str) -> str:
    return "|".join(alternatives)


@cache
def _pattern(words: str) -> re.Pattern[str]:
    """Return what finds *words*: made with the first error of a status, as all at once would delay the start."""
    return re.compile(words, re.IGNORECASE | re.ASCII)


SHAPES = (
    Shape(
        Meaning.TOO_LONG,
        frozenset({400, 413, 422}),
        frozenset(
            {
                "context_length_exceeded",  # OpenAI, Azure, Groq, DeepSeek, Cerebras
                "context_window_exceeded",
                "exceed_context_size_error",  # llama.cpp
                "model_max_prompt_tokens_exceeded",  # GitHub
                "tokens_limit_reached",  # GitHub
                "too_many_prompt_tokens",  # Perplexity
                "too_many_tokens",  # Cohere
                "1261",  # Z.ai
            }
        ),
        _words(
            r"(?:prompt|input) (?:is )?too long",  # Anthropic, Bedrock, Ollama, Fireworks
            r"context.?window",  # OpenAI, MiniMax, LiteLLM
            r"(?:maximum|max|model's|available) context (?:length|size)",  # vLLM, OpenRouter, SGLang
            r"exceeds? (?:the |max(?:imum)? )?context (?:length|limit|size)",  # Anthropic, Ollama
            r"context length of only",  # LM Studio
            r"input token count[^.]{0,80}(?:exceeds|only supports)",  # Gemini, Vertex
            r"number of input tokens[^.]{0,40}exceed",  # Bedrock, watsonx
            r"too many (?:input )?tokens",  # Cohere, Bedrock
            r"maximum prompt length",  # xAI
            r"model token limit",  # Moonshot
            r"length of (?:all|the) messages (?:is too long|or completion)",  # Perplexity, Groq
            r"tokens.{0,3} \+ .{0,3}max_new_tokens.{0,3} must be <=",  # TGI, Together
            r"inputs.{0,3} must have less than \d+ tokens",  # TGI
            r"range of input length should be",  # DashScope
            r"prompt exceeds max length",  # Z.ai
            r"prompt token count of \d+ exceeds",  # GitHub
        ),
        anywhere=True,
    ),
    Shape(
        Meaning.CREDENTIAL,
        frozenset({400, 403}),
        frozenset(
            {
                "api_key_invalid",  # Gemini, Vertex
                "authentication_error",
                "expiredtokenexception",  # AWS
                "incompletesignatureexception",
                "invalidclienttokenid",
                "invalidsignatureexception",
                "missingauthenticationtokenexception",
                "unrecognizedclientexception",
                "invalid_api_key",
                "invalidapikey",  # DashScope
                "unauthenticated",
                "unauthorized",  # Fireworks
            }
        ),
        _words(
            r"incorrect api key",  # xAI
            r"(?:the |your )?api key (?:not valid|expired|is invalid|is not valid|has expired)",
            r"your api key was reported as leaked",  # Gemini
            r"the api key you provided",  # Fireworks
            r"invalid api[ -]?key",
            r"invalid (?:access|auth|authentication|authorization|bearer) (?:token|key)",  # Cloudflare
            r"the security token included in the request is (?:invalid|expired)",  # Bedrock
            r"the request signature we calculated does not match",
            r"signature expired",
            r"missing authentication token",
            r"bearer token (?:has )?expired",
            r"method doesn't allow unregistered callers",  # Gemini
            r"authentication (?:error|fail)",  # Cloudflare, DeepSeek
            r"authorization failed",  # NVIDIA
            r"forbidden: bad or missing api ?key",  # AI21
            r"unauthorized\W*\Z",
        ),
    ),
    Shape(
        Meaning.ACCOUNT,
        frozenset({400, 403}),
        frozenset(
            {
                "access_terminated",
                "account_deactivated",
                "accountoverdueerror",  # Volcengine
                "arrearage",  # DashScope
                "billing_disabled",
                "billing_hard_limit_reached",  # OpenAI
                "billing_not_active",
                "consumer_invalid",
                "consumer_suspended",
                "insufficient_balance",
                "insufficient_quota",
                "organization_restricted",  # Groq
                "unsupported_country_region_territory",  # OpenAI
            }
        ),
        _words(
            r"your credit balance is too low",  # Anthropic
            r"this organization has been disabled",
            r"user location is not supported",  # Gemini
            r"billing hard limit",
            r"access denied, please make sure your account is in good standing",
        ),
    ),
    Shape(
        Meaning.ACCOUNT,
        frozenset({403}),
        frozenset({"exceeded_current_quota_error"}),
        _words(
            r"request not allowed\W*\Z",  # Anthropic, of a region
            r"key limit exceeded",  # OpenRouter
            r"your (?:newly created )?team\b.{0,80}(?:credits|spending limit)",  # xAI
            r"(?:sorry, )?(?:your )?account balance is insufficient",  # SiliconFlow
            r"insufficient (?:account )?(?:balance|credits?|funds|quota)",
        ),
    ),
    Shape(
        Meaning.PERMISSION,
        frozenset({402}),
        frozenset(),
        _words(r"this request requires more credits"),  # OpenRouter: or fewer `max_tokens`
    ),
    Shape(
        Meaning.PERMISSION,
        frozenset({400, 403}),
        frozenset(
            {
                "access_token_scope_insufficient",  # Google
                "allocationquota.freetieronly",  # DashScope
                "api_key_http_referrer_blocked",
                "api_key_ip_address_blocked",
                "api_key_service_blocked",
                "insufficient_permissions",
                "service_disabled",
            }
        ),
        _words(
            r"your organization must be verified",  # OpenAI
            r"operation not allowed\W*\Z",  # Bedrock
        ),
    ),
    Shape(
        Meaning.PERMISSION,
        frozenset({403}),
        frozenset(
            {
                "accessdenied",  # Azure
                "accessdenied.unpurchased",
                "accessdeniedexception",  # Bedrock
                "iam_permission_denied",
                "model.accessdenied",  # DashScope
                "model_not_found",  # OpenAI: a project without access to the model
                "model_permission_blocked_org",  # Groq
                "model_permission_blocked_project",
                "no_access",  # GitHub
                "permission_denied",  # Google
                "permission_denied_error",
                "permission_error",  # Anthropic
                "permissions_error",  # Groq
            }
        ),
        _words(
            r"you don't have access to the model",  # Bedrock
            r"user: \S+ is not authorized to perform",
            r"access to .{1,40} models is not allowed from unsupported countries",
            r"(?:country|region)[^.]{0,30} not supported",
            r"access denied",  # Azure, Groq
            r"public access is disabled",
            r"your (?:newly created )?team\b.{0,80}access",  # xAI
            r"this authentication method does not have sufficient permissions",  # Hugging Face
            r"(?:you have )?insufficient permissions?",
            r"(?:the caller|you|your api key) (?:does|do) not have (?:permission|access)",
            r"(?:project|organization|team|workspace)\b.{0,80} does not have access to",
        ),
    ),
)
"""What is known of errors; the first row that fits tells. A test reads each vendor's recorded one."""

_REFUSED = _words(
    r"moderation",
    r"flagged",
    r"safety",
    r"guidelines",
    r"(?:usage|use|content) polic",
    r"violat(?:es|ion)",
    r"content.?filter",
)
"""What a refusal of the content has in it. No other account fares better, and asking on may cost it."""

_CODES = ("code", "type", "error_type", "error_code", "status", "reason", "__type")
_TEXTS = ("message", "error", "detail", "title", "msg", "error_message")
_INSIDE = ("error", "errors", "detail", "details")


@dataclass(frozen=True, slots=True)
class Said:
    """What an error says: its *codes*, in lower case, its *texts*, and those of others that it *quotes*."""

    codes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    quotes: list[str] = field(default_factory=list)


def read(status: int, body: bytes, coding: bytes = b"") -> Meaning | None:
    """Return what an answer of *status* with *body*, in the content *coding*, means; None where it is
    nothing that the table knows.
    """
    return meaning(status, said(unpacked(body, coding)))


def meaning(status: int, told: Said) -> Meaning | None:
    """Return what an error means that stands for *status* and has *told* this."""
    for shape in SHAPES:
        if status in shape.statuses and _fits(shape, told):
            refused = any(_pattern(_REFUSED).search(text) for text in (*told.codes, *told.texts))
            others = shape.meaning in (Meaning.ACCOUNT, Meaning.PERMISSION)
            return None if refused and others else shape.meaning
    return _PLAINLY.get(status)


_PLAINLY = {401: Meaning.CREDENTIAL, 402: Meaning.ACCOUNT}
"""What a status means of which no row knows better."""
_SURE_CHARS = 12
"""Look for this much of what a message begins with: no words that know a credential or an account are shorter."""
_ESCAPED = re.compile(rb"\\u00(?:2[0dD]|[4-7])")
"""A letter of ours, a space or a hyphen, written so that it is not found."""


def hearsay(told: Said, request: bytes | bytearray, *names: str) -> bool:
    """Return whether the caller may have put into an error what it has *told*: a message begins with what
    stands in the *request*, or in one of the *names* that it says elsewhere. Vendors do begin with a field
    that they do not know, or a model.
    """
    if _ESCAPED.search(request):
        return True
    places = (request.lower(), *[name.lower().encode("utf-8", "replace") for name in names])
    beginnings = [text.lstrip()[:_SURE_CHARS].lower() for text in told.texts]
    sought = [begin.encode("utf-8", "replace") for begin in beginnings if begin]
    return any(begin in place for begin in sought for place in places)


def _fits(shape: Shape, told: Said) -> bool:
    if not shape.codes.isdisjoint(told.codes):
        return True
    words = _pattern(shape.words)
    if shape.anywhere:
        return any(words.search(text) for text in (*told.texts, *told.quotes))
    return any(words.match(text.lstrip()) for text in told.texts)


def said(body: bytes) -> Said:
    """Return what the error in *body* says: JSON, or a line of text."""
    told = Said()
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if not body.lstrip().startswith((b"<", b"{", b"[")):  # no page, nor what is cut off
            told.texts.append(body.decode("utf-8", "replace"))
        return told
    return gathered(tree)


def gathered(tree: Any) -> Said:
    """Return what the error says that is, as JSON, this *tree*."""
    told = Said()
    _gather(tree, told, DEPTH)
    return told


def named(body: bytes) -> tuple[str | None, str | None]:
    """Return the code and the type of the error in *body*, as its vendor writes them, for a log: only
    what looks like a name, at most 120 characters of both, and never a message.
    """
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, None
    if isinstance(tree, list) and tree:
        tree = tree[0]
    if not isinstance(tree, dict):
        return None, None
    error = tree.get("error")
    if not isinstance(error, dict):
        error = tree
    return _first_name(error, _CODE_OF), _first_name(error, _TYPE_OF)


_CODE_OF = ("code", "error_code", "reason", "__type")
_TYPE_OF = ("type", "error_type", "status")
_NAME = re.compile(r"[A-Za-z0-9_.:#-]{1,60}")


def _first_name(error: dict[str, Any], fields: Iterable[str]) -> str | None:
    for name in fields:
        value = error.get(name)
        if isinstance(value, str | int) and _NAME.fullmatch(str(value)):
            return str(value)
    return None


def _gather(tree: Any, told: Said, depth: int) -> None:
    """Put into *told* what *tree* says where vendors say it, and not what it quotes elsewhere."""
    if depth == 0:
        return
    if isinstance(tree, list):
        for item in tree:
            _gather(item, told, depth - 1)
    if not isinstance(tree, dict):
        return
    told.codes.extend(str(code).lower() for code in _values(tree, _CODES, str | int))
    told.texts.extend(_values(tree, _TEXTS, str))
    for name in _INSIDE:
        _gather(tree.get(name), told, depth - 1)
    metadata = tree.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):
        told.quotes.append(metadata["raw"])  # OpenRouter's, of whoever it has asked


def _values(tree: dict[str, Any], names: tuple[str, ...], kind: type | UnionType) -> list[Any]:
    return [value for value in map(tree.get, names) if isinstance(value, kind)]


def unpacked(body: bytes, coding: bytes) -> bytes:
    """Return how *body*, in the content *coding*, begins when it is unpacked: up to `BYTES`. Of another
    coding than gzip and deflate, and where it is broken, nothing.
    """
    coding = coding.strip().lower()
    if coding in PLAIN:
        return body
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        return b""
    raw = coding == b"deflate" and not _has_zlib_head(
        body
    )  # RFC 9110 section 8.4.1.2: some send it bare
    with suppress(zlib.error):
        return zlib.decompressobj(-15 if raw else 47).decompress(body, BYTES)
    return b""


PLAIN = frozenset({b"", b"identity", b"none"})
"""The content codings that are none."""


def _has_zlib_head(body: bytes) -> bool:
    """Return whether *body* begins as RFC 1950 section 2.2 says."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
