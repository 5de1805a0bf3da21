"""What was sent is what arrives, but for the edits that docs/edits.md lists: in both directions, over
real sockets, whatever is sent.

The oracle reads its exceptions from that page, and knows nothing of the program's own code: a
difference that the page does not announce is a fault, and so is an announced edit that is not made.
"""

import asyncio
import gzip
import itertools
import json
import re
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.harness.client import Client
from tests.harness.proxy import serving
from tests.harness.upstream import Conn, Received, Upstream
from tests.test_unrouted import Reading, whole

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Pair = tuple[bytes, bytes]
PAGE = Path(__file__).parent.parent / "docs" / "edits.md"


# The tables


@dataclass(frozen=True)
class Row:
    """One row of a table: the *names* it speaks of, *what* happens to them, and *when*."""

    names: tuple[str, ...]
    what: str
    when: str


WHATS = {"removed", "replaced", "added", "added if absent", "inserted"}
NOT_HEADERS = {
    "target",
    "target: //",
    "target: a base path said twice",
    "target: model",
    "query: key",
    "query: upstream",
    "query: model",
    "query: api-version",
    "body: model",
    "body: form field model",
    "trailers",
    "interim answers",
    "body: a last event",
}
WHENS = {
    "always",
    "where it holds a key of this proxy",
    "where it says whose list of models is wanted",
    "where it says again what the body says",
    "where the path is Azure's and the upstream is not",
    "where it goes by model",
    "where it goes by model and comes packed",
    "where it goes by path and has one",
    "where it goes by path and comes in chunks",
    "unless the surface says passthrough",
    "unless the upstream's forward names it",
    "where its table sets them",
    "where the dialect needs them",
    "where a stream is asked for",
    "where the surface says echo_model",
    "where none is, and the surface says echo_model",
    "where the surface has cors",
    "where cors has the page's origin",
    "where a header chooses the route",
    "where the route sends another name",
    "where it was missing, and there is a route default",
    "where a body comes without Content-Length",
    "where the connection ends with the answer",
    "on a checked stream",
    "on a stream",
    "where a checked stream breaks",
}


@cache
def rows(title: str) -> tuple[Row, ...]:
    """Read the table under the heading that begins with *title*."""
    section = PAGE.read_text().split(f"\n## {title}")[1].split("\n## ")[0]
    found = []
    for line in section.splitlines():
        if line.startswith("| `"):
            names, what, when = (cell.strip() for cell in line.strip("|").split(" | "))
            found.append(
                Row(
                    tuple(re.findall("`([^`]+)`", names)), what.split(":")[0], when.replace("`", "")
                )
            )
    return tuple(found)


# The oracle


@dataclass(frozen=True)
class Message:
    """One request or answer, its framing taken off."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def headers(self) -> list[Pair]:
        lines = self.head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]
        pairs = (line.partition(b":") for line in lines)
        return [(name, value.strip(b" \t")) for name, _, value in pairs]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class Given:
    """What is known of an exchange beforehand: the *facts* that hold of it, what the names in angle
    brackets stand for in it, and the values that our own headers must have.
    """

    facts: set[str]
    named: dict[str, list[Pair]] = field(default_factory=dict)
    values: dict[str, bytes] = field(default_factory=dict)


def header_differences(title: str, before: Message, after: Message, known: Given) -> Iterator[str]:
    """Say how the headers of *after* differ from those of *before*, but for the table's edits."""

    def folded(name: bytes) -> bytes:
        return name.lower().replace(b"_", b"-") if title == "Requests" else name.lower()

    nominated = {
        folded(token.strip())
        for value in before.values(b"connection")
        for token in value.split(b",")
    }
    named = {
        "<named by Connection>": [(name, b"") for name in nominated],
        **known.named,
    }
    removed: list[bytes] = []
    ours: list[tuple[str, bytes, bytes | None]] = []
    codings = [
        text
        for row in rows(title)
        for text in row.names
        if text.startswith(CODING) and row.what == "removed"
    ]
    headers = list(_less(before.headers, {text.removeprefix(CODING).encode() for text in codings}))
    for row in rows(title):
        for text in row.names:
            if row.when not in known.facts or text in NOT_HEADERS or text in codings:
                continue
            name, _, value = text.partition(": ")
            pairs = named[text] if text in named else [(name.encode(), value.encode())]
            if row.what in ("removed", "replaced"):
                removed += [folded(name) for name, _ in pairs]
            if row.what != "removed":
                for key, content in pairs:
                    ours.append((row.what, key, content or known.values.get(text)))

    def passes(pair: Pair) -> bool:
        name = folded(pair[0])
        return not any(
            name.startswith(one[:-1]) if one.endswith(b"*") else name == one for one in removed
        )

    expected_headers = [pair for pair in headers if passes(pair)]
    present = {name.lower() for name, _ in expected_headers}
    rest = after.headers
    for what, key, expected in ours:
        if what == "added if absent" and key.lower() in present:
            continue
        for index in reversed(range(len(rest))):
            if rest[index][0].lower() == key.lower() and expected in (None, rest[index][1]):
                del rest[index]
                break
        else:
            yield f"{key!r} with {expected!r} is missing"
    if rest != expected_headers:
        yield f"headers are {rest}, not {expected_headers}"


CODING = "Accept-Encoding: "


def _less(headers: list[Pair], codings: set[bytes]) -> Iterator[Pair]:
    """Yield *headers* less *codings* where the client accepts them, and `identity` where it has no other."""
    offered = [value for name, value in headers if name.lower() == b"accept-encoding"]
    rest = [_rest(value, codings) for value in offered]
    if rest == offered:
        yield from headers
        return
    for name, value in headers:
        if name.lower() != b"accept-encoding":
            yield name, value
        elif left := _rest(value, codings):
            yield name, left
    if not any(rest):
        yield b"Accept-Encoding", b"identity"


def _rest(value: bytes, codings: set[bytes]) -> bytes:
    kept = [one for one in value.split(b",") if one.split(b";")[0].strip().lower() not in codings]
    return b",".join(kept).strip(b" \t") if len(kept) < value.count(b",") + 1 else value


def _has(title: str, name: str, known: Given) -> bool:
    return any(name in row.names and row.when in known.facts for row in rows(title))


@dataclass(frozen=True)
class Asked:
    """A body as the client wrote it: what stands *before* its model, the model's own *literal*
    (empty where it has none), and what stands *after*. A form has a *boundary*.
    """

    before: bytes
    literal: bytes
    after: bytes
    boundary: bytes = b""

    @property
    def text(self) -> bytes:
        return self.before + self.literal + self.after


def request_differences(
    before: Message,
    after: Message,
    asked: Asked,
    model: str,
    place: str,
    target: bytes,
    known: Given,
) -> list[str]:
    """Say how a request differs that went up as *after*, but for the edits of the table; *place* is
    where it says its model.
    """
    title = "Requests"
    found = list(header_differences(title, before, after, known))
    line = before.line
    if _has(title, "target", known):
        line = b"%b %b HTTP/1.1" % (line.split(b" ")[0], target)
    if after.line != line:
        found.append(f"the request line is {after.line!r}, not {line!r}")
    if not place.startswith("body") or not _has(title, place, known):
        if after.body != asked.text:
            found.append(f"the body is {after.body!r}, not {asked.text!r}")
        return found
    start, end = len(asked.before), len(after.body) - len(asked.after)
    if not (
        start <= end
        and after.body.startswith(asked.before)
        and after.body.endswith(asked.after)
        and _is_model(after.body[start:end], asked, model)
    ):
        found.append(f"the body is {after.body!r}, not {asked} with {model!r}")
    return found


def _is_model(text: bytes, asked: Asked, model: str) -> bool:
    if asked.boundary:
        part = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
        value = model.encode()
        return text == (value if asked.literal else part % (asked.boundary, value))
    if not asked.literal:
        comma = b"" if asked.after.lstrip(b" \t\r\n").startswith(b"}") else b","
        match = re.fullmatch(rb'"model":(.*?)' + comma, text, re.DOTALL)
        return match is not None and json.loads(match[1]) == model
    return bool(json.loads(text) == model)


def answer_differences(before: Message, after: Message, known: Given) -> list[str]:
    """Say how an answer differs that came down as *after*, but for the edits of the table."""
    found = list(header_differences("Answers", before, after, known))
    if after.line != before.line:
        found.append(f"the status line is {after.line!r}, not {before.line!r}")
    if after.body != before.body:
        found.append(f"the body is {after.body!r}, not {before.body!r}")
    return found


# What is sent

KEY = b"tk-the-team-key"
CREDENTIAL = "sk-the-upstreams-credential"


@dataclass(frozen=True)
class Road:
    """A model string, the path it is asked at, and what the routes file makes of both: where it goes,
    under which name and credential. *place* is where it says its model, as the table calls it, or
    `path` for what goes by path; *ending* the path whose streams end as its own do.
    """

    model: str | None
    path: str
    target: str
    sent: str
    credential: Pair
    headers: tuple[Pair, ...] = ()
    preset: tuple[Pair, ...] = ()
    checked: bool = True
    place: str = "body: model"
    ending: str = ""
    query: str = ""


BEARER = (b"Authorization", b"Bearer " + CREDENTIAL.encode())
TEAM = (b"X-Team", b"search")
VERSION = (b"anthropic-version", b"2023-06-01")
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
X_API_KEY = (b"x-api-key", CREDENTIAL.encode())
GOOG = (b"x-goog-api-key", CREDENTIAL.encode())
FORM, URL, PATH = "body: form field model", "target: model", "path"
OTHER = 'other "é" name'
QUOTED = "other%20%22%C3%A9%22%20name"
ROADS = [
    Road("alias", CHAT, "/up/v1/chat/completions", OTHER, BEARER, (TEAM,)),
    Road("same", CHAT, "/up/v1/chat/completions", "same", BEARER, (TEAM,)),
    Road("same", "/v1/embeddings", "/up/v1/embeddings", "same", BEARER, (TEAM,), checked=False),
    Road("same", "/v1/responses", "/up/v1/responses", "same", BEARER, (TEAM,)),
    Road(None, "/chat/completions", "/up/v1/chat/completions", "the default", BEARER, (TEAM,)),
    Road(
        "loose/a/b",
        "/api/v1/chat/completions",
        "/loose/chat/completions",
        "a/b",
        (b"X-Corp-Key", CREDENTIAL.encode()),
        checked=False,
    ),
    Road("claude-1", MESSAGES, "/a/messages", "claude-1", X_API_KEY, preset=(VERSION,)),
    Road("claude-1", CHAT, "/a/chat/completions", "claude-1", BEARER),
    # forms
    Road("alias", "/v1/audio/transcriptions", "/up/v1/audio/transcriptions", OTHER, BEARER, (TEAM,),
         checked=False, place=FORM),
    Road("same", "/v1/images/edits", "/up/v1/images/edits", "same", BEARER, (TEAM,),
         checked=False, place=FORM),
    Road(None, "/v1/audio/translations", "/up/v1/audio/translations", "the default", BEARER, (TEAM,),
         checked=False, place=FORM),
    # Gemini's own paths
    Road("alias", "/v1beta/models/alias:generateContent", f"/up/v1/models/{QUOTED}:generateContent",
         OTHER, BEARER, (TEAM,), checked=False, place=URL),
    Road("g/x y", "/v1beta/models/g%2Fx%20y:streamGenerateContent",
         "/g/models/x%20y:streamGenerateContent", "x y", GOOG, checked=False, place=URL),
    Road("same", "/v1/models/s%61me:countTokens", "/up/v1/models/s%61me:countTokens", "same", BEARER,
         (TEAM,), checked=False, place=URL),
    # by path
    Road(None, "/v1/files", "/up/v1/files", "", BEARER, (TEAM,), checked=False, place=PATH),
    Road(None, "/files/a%2Fb;c=d/content", "/up/v1/files/a%2Fb;c=d/content", "", BEARER, (TEAM,),
         checked=False, place=PATH),
    Road(None, "/v1/responses/resp_1", "/up/v1/responses/resp_1", "", BEARER, (TEAM,),
         place=PATH, ending=RESPONSES),
    Road(None, "/api/v1/messages/batches", "/a/messages/batches", "", X_API_KEY, preset=(VERSION,),
         place=PATH, ending=MESSAGES),
    Road(None, "/v1/models", "/up/v1/models", "", BEARER, (TEAM,), checked=False, place=PATH,
         query="upstream=up"),
]  # fmt: skip


def routes(upstream: Upstream) -> str:
    return f"""
[server]
strip = ["X-Visitor", "x_team-*"]
[keys]
team = "{KEY.decode()}"
[upstreams.up]
base_url = "http://{upstream.authority}/up/v1"
credential = "{CREDENTIAL}"
headers = {{ "X-Team" = "search" }}
[upstreams.loose]
base_url = "http://{upstream.authority}/loose"
credential = {{ header = "X-Corp-Key", secret = "{CREDENTIAL}" }}
terminal = "none"
[upstreams.anthropic]
base_url = "http://{upstream.authority}/a"
credential = "{CREDENTIAL}"
[upstreams.google]
base_url = "http://{upstream.authority}/g/openai"
credential = "{CREDENTIAL}"
paths = {{ gemini = "http://{upstream.authority}/g" }}
forms = {{ gemini = "x-goog-api-key" }}
[unrouted]
"messages" = "anthropic"
"files" = "up"
"*" = "up"
[routes]
"g/*" = {{ upstream = "google", model = "*" }}
"alias" = {{ upstream = "up", model = 'other "é" name' }}
"same" = {{ upstream = "up" }}
"default" = {{ upstream = "up", model = "the default" }}
"loose/*" = {{ upstream = "loose", model = "*" }}
"claude-*" = {{ upstream = "anthropic" }}
"""


def _cased(names: Iterable[bytes]) -> list[bytes]:
    return [form for name in names for form in (name, name.lower(), name.upper(), name.swapcase())]


PASSING = _cased(
    [b"Accept", b"User-Agent", b"X-Stainless-Lang", b"OpenAI-Organization", b"Anthropic-Beta",
     b"Content-Type", b"X-Custom_1", b"!#$%&'*+-.^`|~", b"X-Request-Id", b"Idempotency-Key",
     b"X-Forwarded", b"Cookies", b"Traceparent", b"Date", b"Server", b"Cache-Control", b"Warning"]
)  # fmt: skip
HOP = _cased([b"Keep-Alive", b"Proxy-Connection", b"TE", b"Trailer", b"Proxy-Authorization"])


def of_edges() -> list[bytes]:
    """Return the names that the page says an edge sends, each as it is and with another `_` or `-`."""
    names = [
        name.replace("*", "X").encode()
        for row in rows("Requests")
        if row.when == "unless the upstream's forward names it"
        for name in row.names
        if not name.startswith("<")
    ]
    assert len(names) > 40
    return names + [name.replace(b"-", b"_") for name in names]


FOLDED = [
    b"Transfer_Encoding", b"CONTENT_LENGTH", b"X_Api_Key", b"api_key", b"x-goog_api-key", b"Proxy_Connection",
    b"X_Team", b"X_Corp_Key", b"Accept_Encoding", b"x_forwarded_for", b"X_Visitor", b"x-team_a", b"Keep_Alive",
]  # fmt: skip
EDITED = of_edges() + FOLDED + _cased(
    [b"X-Visitor", b"X-Team-Lead", b"Cookie", b"Forwarded", b"X-Forwarded-For", b"X-Forwarded-Whatever", b"Via", b"X-Api-Key",
     b"Api-Key", b"ApiKey", b"X-Goog-Api-Key", b"Accept-Encoding", b"X-Team", b"X-Corp-Key",
     b"Anthropic-Version"]
)  # fmt: skip
ANSWERED = _cased(
    [b"Set-Cookie", b"Alt-Svc", b"Proxy-Authenticate", b"X-Accel-Buffering", b"Retry-After",
     b"X-Ratelimit-Remaining-Tokens", b"Request-Id", b"X-Trunkline-Id", b"Upgrade", b"Via",
     b"Strict-Transport-Security", b"WWW-Authenticate", b"Location", b"ETag", b"Content-Range"]
)  # fmt: skip
SINGLE = {b"content-type", b"user-agent", b"server"}
WORDS = [b"", b"a", b"text/plain; charset=utf-8", b"a,b", b"a  b\tc", b'"q\\"s"', b"close", b"\xe9",
         b"\x80\xff\xa0", "grüße".encode(), b"chunked", b"1", b"x" * 300, b"a: b", b"=?utf-8?q?",
         b"gzip, br;q=1, zstd", b"BR"]  # fmt: skip
VALUES = st.sampled_from(WORDS) | st.text("aZ09 ,;:=\t\xa0\xff", max_size=8).map(
    lambda text: text.strip(" \t").encode("latin-1")
)
NOMINATIONS = st.sampled_from(
    [b"keep-alive", b"", b"X-Custom_1", b"x-custom_1 ,\tkeep-alive", b"Accept, X-Team,User-Agent",
     b"authorization, x-api-key, content-length, host", b"Date,x-stainless-lang"]
)  # fmt: skip
COLONS = st.sampled_from([b": ", b": ", b":", b":  ", b":\t"])


def _once(lines: list[bytes]) -> list[bytes]:
    """Leave out what a request may say once only, or is refused."""
    kept: dict[bytes | int, bytes] = {}
    for index, line in enumerate(lines):
        name = line.partition(b":")[0].lower()
        kept.setdefault(name if name in SINGLE else index, line)
    return list(kept.values())


@st.composite
def header_lists(draw: st.DrawFn, names: list[bytes], nominations: Any) -> list[bytes]:
    """Draw header lines, without their line ends."""
    pairs = draw(st.lists(st.tuples(st.sampled_from(names), VALUES), max_size=8))
    if draw(st.integers(0, 3)) == 0:
        pairs.append(draw(st.sampled_from(pairs)) if pairs else (b"X-Dup", b"1"))
        pairs.insert(0, pairs[-1])
    for value in draw(st.lists(nominations, max_size=2)) if draw(st.booleans()) else ():
        pairs.insert(len(pairs) // 2, (b"cOnnection", value))
    colon = draw(COLONS)
    return [name + colon + value for name, value in pairs]


MEMBERS = [
    '"messages":[{"role":"user","content":"hé\U0001f600\\ud83d\\ude00\\u00e9\\/"}]',
    '"messages" : [\r\n\t{ "model" : "inner" , "model":"again" }\r\n]',
    '"n":123456789012345678901234567890.1234567890123456789',
    '"t":1E+400',
    '"z":-0',
    '"f":1.0',
    '"lone":"\\ud800 \\udfff\\uDC00"',
    '"unknown_field":{"a":[[],{},[{}]],"a":null,"a":true}',
    '"a":1',
    '"a":"\\"model\\":\\"x\\""',
    '"x\\\\":"model"',
    '"":"\u2028\u0000"'.replace("\u0000", "\\u0000"),
    '"stream_options":{"include_usage":false}',
    '"crlf":"\\r\\n"',
    '"a":{"Model":"M"}',
    '"seed":9007199254740993',
    '"tools":[' + ",".join(['{"model":"alias","n":1}'] * 9) + "]",
]
SPACES = st.sampled_from(["", " ", "\r\n", "\n\t ", "  "])
MODEL_KEYS = st.sampled_from(['"model"', '"model"', '"mod\\u0065l"', '"\\u006dodel" '])


@st.composite
def bodies(draw: st.DrawFn, model: str | None) -> tuple[Asked, bool]:
    """Draw a body that asks for *model*, and whether it asks for a stream."""
    members = draw(st.lists(st.sampled_from(MEMBERS), max_size=4))
    stream = draw(st.sampled_from([None, None, "true", "false", '"true"']))
    if stream is not None:
        members.append(f'"stream":{draw(SPACES)}{stream}')
    space = draw(SPACES)
    glue = draw(SPACES) + "," + space
    if model is None:
        opening = draw(SPACES) + "{" + space
        asked = Asked(opening.encode(), b"", (glue.join(members) + "}" + space).encode())
        return asked, stream == "true"
    place = draw(st.integers(0, len(members)))
    escaped = "".join(f"\\u{ord(ch):04x}" for ch in model)
    literal = draw(st.sampled_from([json.dumps(model), json.dumps(model), f'"{escaped}"']))
    mark = "\0MODEL\0"
    members.insert(place, f"{draw(MODEL_KEYS)}{space}:{draw(SPACES)}{mark}")
    text = space + "{" + draw(SPACES) + glue.join(members) + space + "}" + draw(SPACES)
    before, after = text.split(mark)
    return Asked(before.encode(), literal.encode(), after.encode()), stream == "true"


@dataclass(frozen=True)
class Request:
    """A request as it is written, and what the proxy ought to make of it."""

    raw: bytes
    message: Message
    asked: Asked
    road: Road
    target: str
    facts: frozenset[str]
    cuts: tuple[int, ...]


BOUNDARIES = [b"x", b"----WebKitFormBoundaryABC123", b"a'()+_,-./:=?b", b"-" * 70]
FIELDS: list[tuple[bytes, bytes]] = [
    (b'Content-Disposition: form-data; name="file"; filename="a \\"b\\".bin"', bytes(range(256))),
    (b"content-disposition:form-data;name=prompt", "grüße\r\nmodel".encode()),
    (b'X-A: 1\r\nContent-DISPOSITION: form-data; name="Models"', b"M"),
    (b'Content-Disposition: form-data; name="file"\r\nContent-Type: image/png', b"\r\n\r\n\n--\r"),
    (b'Content-Disposition: form-data; name=""', b""),
    (b'Content-Disposition: form-data; name="file"; filename=""', b'name="model"\r\n\r\nx'),
    (b'Content-Disposition: form-data; name="model[]"', b"z" * 3000),
]


@st.composite
def forms(draw: st.DrawFn, model: str | None) -> tuple[Asked, bool]:
    """Draw a form that asks for *model*, and whether it asks for a stream."""
    boundary = draw(st.sampled_from(BOUNDARIES))
    fields = draw(st.lists(st.sampled_from(FIELDS), min_size=model is None, max_size=4))
    stream = draw(st.sampled_from([None, None, b"true", b"false", b"TRUE"]))
    if stream is not None:
        name = draw(st.sampled_from([b'name="stream"', b"NAME=stream"]))
        fields.append((b"Content-Disposition: form-data; " + name, stream))
    mark = b"\0MODEL\0"
    if model is not None:
        name = draw(st.sampled_from([b'name="model"', b"name=model", b'a=b; Name="model" ']))
        place = draw(st.integers(0, len(fields)))
        fields.insert(place, (b"Content-Disposition: form-data; " + name, mark))
    parts = [b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, *field) for field in fields]
    start = draw(st.sampled_from([b"", b"", b"preamble\r\n", b"\r\n"]))
    ending = b"--%b--" % boundary + draw(st.sampled_from([b"", b"\r\n", b"\r\nepilogue\n"]))
    whole = b"".join(parts) + ending
    if model is None:
        return Asked(start, b"", whole, boundary), stream == b"true"
    before, after = whole.split(mark)
    return Asked(start + before, model.encode(), after, boundary), stream == b"true"


UNSEEN = [
    b"",
    b"{",
    b'{"model":"alias","model":1,"stream":true}',
    bytes(range(256)) * 20,
    b"--x\r\n\r\n",
    b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    gzip.compress(b"{}", mtime=0),
]
"""Bodies at which nobody looks."""
QUERIES = [
    "",
    "",
    "?api-version=2024-10-21",
    "?a=%20&b=+&a=%C3%A9",
    "?x=1&key=%b",
    "?key=%b",
    "?key=theirs",
    "?stream=true&model=//v1/v1",
    "?a&&stream=True&=",
]
PACKED: list[tuple[bytes, Callable[[bytes], bytes]]] = [
    (b"gzip", lambda text: gzip.compress(text, mtime=0)),
    (b"Deflate", zlib.compress),
    (b"zstd", zstd.compress),
]
CUTS = st.lists(st.integers(0, 3000), max_size=4).map(tuple)


def chunked(body: bytes, size: int, trailers: bytes = b"", extension: bytes = b"") -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return chunks + b"0\r\n" + trailers + b"\r\n"


def announced(name: str) -> bool:
    """Return whether the page speaks of *name* at all: what is not announced, is not expected."""
    return any(name in row.names for row in rows("Requests"))


@st.composite
def targets(draw: st.DrawFn, road: Road) -> tuple[str, str, set[str]]:
    """Draw a target for *road*, what ought to become of it, and the facts about it."""
    facts = set()
    path, sent = road.path, road.target
    if not announced("target: model") and road.place == URL:
        sent = sent.rpartition("/")[0] + "/" + path.rpartition("/")[2]
    if draw(st.integers(0, 4)) == 0 and path.startswith(("/v1/", "/api/v1/")):
        twice = path.replace("/v1/", "/v1/v1/", 1)
        path = twice
        if not announced("target: a base path said twice"):
            sent = "not announced: " + twice
    if draw(st.integers(0, 4)) == 0:
        slashes = path.replace("/", draw(st.sampled_from(["//", "///"])))
        path = slashes
        if not announced("target: //"):
            sent = "not announced: " + slashes
    query = draw(st.sampled_from(QUERIES)).replace("%b", KEY.decode())
    if road.place in (FORM, "body: model") and "model=" in query:
        said = "" if road.model is None else f"&model={quote(road.model)}"
        query = query.replace("&model=//v1/v1", said)
    kept = query
    if "&model=" in query and road.place in (FORM, "body: model"):
        facts.add("where it says again what the body says")
        if announced("query: model"):
            kept = query.partition("&model=")[0]
    if KEY.decode() in query:
        facts.add("where it holds a key of this proxy")
        if announced("query: key"):
            kept = query.replace(f"&key={KEY.decode()}", "").replace(f"?key={KEY.decode()}", "")
    if road.place == PATH and "stream=true" in query:
        facts.add("where a stream is asked for")
    if road.query:
        facts.add("where it says whose list of models is wanted")
        query = f"{query}&{road.query}" if query else f"?{road.query}"
        if not announced("query: upstream"):
            kept = f"{kept}&{road.query}" if kept else f"?{road.query}"
    return path + query, sent + kept, facts


@st.composite
def requests(draw: st.DrawFn, road: Road) -> Request:
    """Draw a request for *road*."""
    target, expected, facts = draw(targets(road))
    method, framings = b"POST", ["length", "length", "chunks"]
    lines = _once(draw(header_lists(PASSING + HOP + EDITED, NOMINATIONS)))
    if road.place == FORM:
        asked, stream = draw(forms(road.model))
        lines = [line for line in lines if not line.lower().startswith(b"content-type")]
        kind = draw(
            st.sampled_from(
                [b"multipart/form-data; boundary=", b"Multipart/Form-Data;a=b;BOUNDARY="]
            )
        )
        lines.insert(
            draw(st.integers(0, len(lines))), b'content-TYPE: %b"%b"' % (kind, asked.boundary)
        )
    elif road.place == "body: model":
        asked, stream = draw(bodies(road.model))
    else:
        asked, stream = Asked(b"", b"", draw(st.sampled_from(UNSEEN))), ":stream" in road.path
    if road.place == PATH:
        methods = [b"GET"] if road.query else [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"]
        method = draw(st.sampled_from(methods))
        framings.append("none")
        if draw(st.integers(0, 4)) == 0:
            lines.append(b"Content-Encoding: gzip")
    framing = draw(st.sampled_from(framings))
    if framing == "none":
        asked = Asked(b"", b"", b"")
    lines.insert(draw(st.integers(0, len(lines))), b"AuthoriZation: Bearer " + KEY)
    lines.insert(draw(st.integers(0, len(lines))), b"hOST: localhost")
    body = asked.text
    packed = road.place in (FORM, "body: model") and draw(st.integers(0, 4)) == 0
    if packed:
        coding, pack = draw(st.sampled_from(PACKED))
        lines.append(b"content-Encoding: " + coding)
        body = pack(body)
    if draw(st.integers(0, 9)) == 0:
        lines.append(b"Expect: 100-continue")
    framed = b""
    if framing == "length":
        lines.insert(draw(st.integers(0, len(lines))), b"content-Length: %d" % len(body))
        framed = body
    elif framing == "chunks":
        lines.append(b"Transfer-encoding: chunked")
        framed = chunked(body, draw(st.sampled_from([1, 7, 1000])), b"X-Trailer: dropped\r\n")
    head = b"\r\n".join([b"%b %b HTTP/1.1" % (method, target.encode()), *lines]) + b"\r\n\r\n"
    facts |= {
        "always",
        "unless the surface says passthrough",
        "unless the upstream's forward names it",
        "where its table sets them",
        "where the dialect needs them",
    }
    if stream:
        facts.add("where a stream is asked for")
    if packed:
        facts.add("where it goes by model and comes packed")
    if road.place != PATH:
        facts.add("where it goes by model")
        if road.model is None:
            facts.add("where it was missing, and there is a route default")
        elif road.model != road.sent:
            facts.add("where the route sends another name")
    elif framing == "length":
        facts.add("where it goes by path and has one")
    elif framing == "chunks":
        facts.add("where it goes by path and comes in chunks")
    return Request(
        head + framed, Message(head, body), asked, road, expected, frozenset(facts), draw(CUTS)
    )


STATUSES = [
    status
    for status in range(200, 600)
    if status != 401 and not (300 <= status < 400 and status != 304)
]
REASONS = [b"OK", b"", b"Not  Quite", b"\xe9t\xe9", b"I'm a teapot", b"x" * 200, b"200 OK"]
EVENTS = [
    b'data: {"choices":[{"delta":{"content":"h\xc3\xa9\xf0\x9f\x98\x80"}}]}',
    b"data:", b": comment", b":", b"event: x\ndata: 1", b"id: 7\rretry: 10\r\ndata: a\rdata: b",
    b"data: \xff\xfe", b"field", b"data: [DONE", b"", b"\n\n", b"data: " + b"y" * 1500,
]  # fmt: skip
ENDS = [b"\n", b"\r\n", b"\r"]
MARKERS = {
    CHAT: b"data: [DONE]",
    RESPONSES: b"event: response.completed\ndata: {}",
    MESSAGES: b"event: message_stop\ndata: {}",
}
PLAIN = [
    b"",
    b'{"id":"x","choices":[{"message":{"content":"\\u00e9"}}],"n":1.0}',
    b"<html>\r\n<h1>502 Bad Gateway</h1></html>\r\n",
    bytes(range(256)) * 3,
    gzip.compress(b'{"a":1}', mtime=0),
    b'{"error":{"message":"no","code":null}}\n',
    b"\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"z" * 70_000,
]
TYPES = [b"application/json", b"text/html; charset=ISO-8859-1", b"application/octet-stream"]


@dataclass(frozen=True)
class Reply:
    """An answer as the upstream writes it; *facts* are what the proxy may therefore do."""

    raw: bytes
    message: Message
    facts: frozenset[str]
    cuts: tuple[int, ...]
    closes: bool


@st.composite
def streams(draw: st.DrawFn, marker: bytes) -> bytes:
    end = draw(st.sampled_from(ENDS))
    events = draw(st.lists(st.sampled_from(EVENTS), max_size=5))
    blanks = draw(st.sampled_from([end, end * 2, b"\n\n", b"\r\n\r\n"]))
    bom = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    text = bom + b"".join(event + end + blanks for event in events)
    return text + end * 2 + marker.replace(b"\n", end) + end * 2


@st.composite
def replies(draw: st.DrawFn, road: Road) -> Reply:
    """Draw an answer, complete in its way."""
    status = draw(st.just(200) | st.sampled_from(STATUSES))
    lines = draw(header_lists(PASSING + HOP + ANSWERED, NOMINATIONS))
    facts = {"always"}
    bodiless = status in (204, 304)
    if draw(st.booleans()) and not bodiless:
        facts.add("on a stream")
        lines.insert(0, draw(st.sampled_from([
            b"Content-Type: text/event-stream", b"content-type:Text/Event-Stream;charset=utf-8",
        ])))  # fmt: skip
        suffix = road.path.rpartition("/v1")[2]
        marker = MARKERS.get(road.ending or "/v1" + suffix, b"")
        body = draw(streams(marker))
        lines = [
            line
            for line in lines
            if not line.lower().startswith(b"content-type") or line == lines[0]
        ]
        encoded = draw(st.integers(0, 4)) == 0
        if encoded:
            body = gzip.compress(body, mtime=0)
            lines.append(b"Content-Encoding: gzip")
        if road.checked and 200 <= status < 300 and not encoded:
            facts.add("on a checked stream")
    else:
        body = b"" if bodiless else draw(st.sampled_from(PLAIN) | st.binary(max_size=50))
        if body.startswith(b"\x1f\x8b"):
            lines.append(b"content-encoding: gzip")
        lines.append(b"Content-Type: " + draw(st.sampled_from(TYPES)))
    form = "none" if bodiless else draw(st.sampled_from(["length", "length", "chunks", "close"]))
    framed = body
    closes = draw(st.integers(0, 9)) == 0
    if form == "length":
        lines.insert(draw(st.integers(0, len(lines))), b"Content-LENGTH: %d" % len(body))
    elif form == "chunks":
        lines.append(b"Transfer-Encoding: " + draw(st.sampled_from([b"chunked", b"Chunked"])))
        size = max(draw(st.sampled_from([1, 13, 4000])), len(body) // 300)
        trailers = draw(st.sampled_from([b"", b"X-Trailer: 1\r\n"]))
        framed = chunked(body, size, trailers, b";x=y")
    closes = closes or form == "close"
    if closes:
        lines.append(b"Connection: close")
    nominated = {
        token.strip().lower()
        for line in lines
        if line.lower().startswith(b"connection:")
        for token in line.partition(b":")[2].split(b",")
    }
    whole = form == "length" and b"content-length" not in nominated
    if not bodiless and (not whole or "on a checked stream" in facts):
        facts.add("where a body comes without Content-Length")
    start = b"HTTP/1.1 %d %b" % (status, draw(st.sampled_from(REASONS)))
    head = b"\r\n".join([start, *lines]) + b"\r\n\r\n"
    interim = draw(
        st.sampled_from([b"", b"", b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"])
    )
    if interim and draw(st.booleans()):
        interim = interim * 2 + b"HTTP/1.1 100 Continue\r\n\r\n"
    return Reply(interim + head + framed, Message(head, body), frozenset(facts), draw(CUTS), closes)


@dataclass(frozen=True)
class Drawn:
    request: Request
    reply: Reply


@dataclass(frozen=True)
class Carried:
    """What arrived: the *request* upstream, the *answer* at the client, and whether the client's
    connection *ends* with it.
    """

    request: Message
    answer: Message
    ends: bool


@st.composite
def exchanges(draw: st.DrawFn) -> list[Drawn]:
    """Draw two requests and two answers, and let each of these answer each of those."""
    road = draw(st.sampled_from(ROADS))
    asked = [draw(requests(road)), draw(requests(road))]
    answers = [draw(replies(road)), draw(replies(road))]
    return list(itertools.starmap(Drawn, itertools.product(asked, answers)))


# The wire


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


async def _write(writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)


class Wire:
    """A client's connection to the proxy, opened anew when an answer has ended it, and the upstream
    behind.
    """

    def __init__(self, upstream: Upstream, port: int) -> None:
        self.upstream = upstream
        self._port = port
        self._client: Client | None = None

    def __repr__(self) -> str:
        return "Wire"

    async def carry(self, drawn: Drawn) -> Carried:
        """Send the request, answer it, and return what arrived at either end."""

        async def step(conn: Conn, request: Received) -> None:
            await _write(conn.writer, split(drawn.reply.raw, drawn.reply.cuts))
            conn.keep = not drawn.reply.closes

        self.upstream.will(step)
        self.upstream.requests.clear()
        if self._client is None:
            self._client = await Client.connect(self._port)
        try:
            await _write(self._client.writer, split(drawn.request.raw, drawn.request.cuts))
            answer = await self._client.answer()
            assert answer.whole, answer.raw
            assert self.upstream.requests, answer.raw
            received = self.upstream.requests[0]
            ends = b"close" in answer.values(b"connection")
            if ends:
                assert await self._client.closed() == b""
                self.close()
        except BaseException:
            self.close()
            raise
        return Carried(
            Message(received.head, received.body), Message(answer.head, answer.body), ends
        )

    async def finish(self) -> None:
        """Take what else is answered on the connection, and close it."""
        if self._client is not None:
            await self._client.answer()
            self.close()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class Whole(Reading):
    """An upstream that reads every request to its end, however it is framed."""

    @staticmethod
    async def _read(conn: Conn) -> Received | None:
        request = await Reading._read(conn)
        if request is not None:
            request.body = await whole(conn, request)
        return request


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with Whole() as upstream, serving(routes(upstream)) as proxy:
        wire = Wire(upstream, proxy.port)
        yield wire
        wire.close()


def differences(wire: Wire, drawn: Drawn, carried: Carried) -> list[str]:
    """Say what the two ends of an exchange do not agree about, both ways."""
    road = drawn.request.road
    upwards = Given(
        set(drawn.request.facts),
        {
            "<the upstream's credential>": [road.credential],
            "<the upstream's headers>": list(road.headers),
            "<what the surface strips>": [(b"x-visitor", b""), (b"x-team-*", b"")],
            "<the preset's headers>": list(road.preset),
        },
        {
            "Host": wire.upstream.authority.encode(),
            "Content-Length": b"%d" % len(carried.request.body),
        },
    )
    downwards = Given(set(drawn.reply.facts))
    if carried.ends:
        downwards.facts.add("where the connection ends with the answer")
    return request_differences(
        drawn.request.message,
        carried.request,
        drawn.request.asked,
        road.sent,
        road.place,
        drawn.request.target.encode(),
        upwards,
    ) + answer_differences(drawn.reply.message, carried.answer, downwards)


def test_the_tables_can_be_read() -> None:
    """Every row of both tables says something the oracle understands."""
    for title in ("Requests", "Answers"):
        assert len(rows(title)) > 10
        for row in rows(title):
            assert row.names
            assert row.what in WHATS
            assert row.when in WHENS


@pytest.mark.timeout(300)
@settings(
    max_examples=500,  # of four exchanges each
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(drawn=exchanges())
async def test_nothing_else_changes(wire: Wire, drawn: list[Drawn]) -> None:
    """No generated request and no generated answer arrives otherwise than the tables say."""
    for exchange in drawn:
        assert differences(wire, exchange, await wire.carry(exchange)) == []


def _written(
    lines: list[bytes], asked: Asked, reply: list[bytes], body: bytes, cuts: tuple[int, ...] = ()
) -> Drawn:
    """Write an exchange by hand, at the first of the roads."""
    start = [b"POST /v1/chat/completions HTTP/1.1", b"Host: localhost", b"Authorization: " + KEY]
    length = b"Content-Length: %d"
    head = b"\r\n".join([*start, *lines, length % len(asked.text)]) + b"\r\n\r\n"
    facts = WHENS - {
        "where it holds a key of this proxy",
        "where it says whose list of models is wanted",
        "where it goes by model and comes packed",
        "where it goes by path and has one",
        "where it goes by path and comes in chunks",
        "where a stream is asked for",
        "where it was missing, and there is a route default",
        "where a body comes without Content-Length",
        "where the connection ends with the answer",
        "on a checked stream",
        "on a stream",
        "where a checked stream breaks",
        "where the surface says echo_model",
        "where none is, and the surface says echo_model",
        "where the surface has cors",
        "where cors has the page's origin",
        "where a header chooses the route",
    }
    request = Request(
        head + asked.text, Message(head, asked.text), asked, ROADS[0], ROADS[0].target,
        frozenset(facts), cuts,
    )  # fmt: skip
    head = b"\r\n".join([b"HTTP/1.1 200 Fine", *reply, length % len(body)]) + b"\r\n\r\n"
    return Drawn(request, Reply(head + body, Message(head, body), frozenset(facts), cuts, False))


@pytest.mark.parametrize("cuts", [(), tuple(range(0, 2_000_000, 4001))])
async def test_many_numbers(wire: Wire, cuts: tuple[int, ...]) -> None:
    """A hundred and fifty thousand numbers arrive as they were written, both ways."""
    numbers = b", ".join(b"%d.%d0e+0%d" % (n, n % 7, n % 3) for n in range(150_000))
    asked = Asked(b'{"input":[' + numbers + b'],\r\n"model" : ', b'"alias"', b',"end":true}')
    drawn = _written([], asked, [b"Content-Type: x"], b'{"embedding":[' + numbers + b"]}", cuts)
    assert differences(wire, drawn, await wire.carry(drawn)) == []


TRAILERS = b"X-Late: 1\r\nAuthorization: Bearer x\r\nX-Late: 2\r\n"


def _in_chunks(drawn: Drawn, trailers: bytes) -> Drawn:
    """Write the request of *drawn* in chunks, with *trailers*."""
    request = drawn.request
    length = b"Content-Length: %d" % len(request.asked.text)
    head = request.message.head.replace(length, b"Transfer-Encoding: chunked")
    raw = head + chunked(request.asked.text, 5, trailers)
    message = Message(head, request.asked.text)
    return Drawn(replace(request, raw=raw, message=message), drawn.reply)


async def test_trailers_go_nowhere(wire: Wire) -> None:
    """The trailers of a request are not taken for headers, of this one nor of the next one."""
    plain = _written([], Asked(b'{"model":', b'"alias"', b"}"), [], b"")
    late = _in_chunks(plain, TRAILERS)
    for drawn in (late, plain, late, plain):
        assert differences(wire, drawn, await wire.carry(drawn)) == []


@pytest.mark.parametrize("cut", [0, 200])
async def test_trailers_of_pipelined_requests(wire: Wire, cut: int) -> None:
    """Nor are they when the next request comes in the same packet, whatever its form."""
    plain = _written([], Asked(b'{"model":', b'"alias"', b"}"), [], b"{}")
    late = _in_chunks(plain, TRAILERS).request
    for second in (plain.request, _in_chunks(plain, b"").request):
        both = replace(late, raw=late.raw + second.raw, cuts=(cut,))
        await wire.carry(Drawn(both, plain.reply))
        await wire.finish()
        assert all(b"x-late" not in seen.head.lower() for seen in wire.upstream.requests)


def _lower_case(message: Message) -> Message:
    return replace(message, head=message.head.replace(b"X-MiXed", b"x-mixed"))


def _lost_duplicate(message: Message) -> Message:
    return replace(message, head=message.head.replace(b"X-Twice: 1\r\n", b"", 1))


def _line_ends(message: Message) -> Message:
    return replace(message, body=message.body.replace(b"\r\n", b"\n"))


def _dumped_again(message: Message) -> Message:
    return replace(message, body=json.dumps(json.loads(message.body)).encode())


def _added_date(message: Message) -> Message:
    date = b"Date: Sat, 21 Nov 2026 00:00:00 GMT\r\n\r\n"
    return replace(message, head=message.head.removesuffix(b"\r\n") + date)


@pytest.mark.parametrize("direction", ["request", "answer"])
@pytest.mark.parametrize(
    "fault", [_lower_case, _lost_duplicate, _line_ends, _dumped_again, _added_date]
)
async def test_planted_faults(
    wire: Wire, fault: Callable[[Message], Message], direction: str
) -> None:
    """The oracle sees each of five faults that proxies are known for, planted in what arrived."""
    headers = [b"X-MiXed: a", b"X-Twice: 1", b"Accept: b", b"X-Twice: 1"]
    asked = Asked(b'{ "n" : 1.0,\r\n "s":"\\u00e9", "model":', b'"alias"', b"\r\n}")
    drawn = _written(headers, asked, headers, b'{ "n" : 1.0,\r\n "s":"\\u00e9"\r\n}\r\n')
    carried = await wire.carry(drawn)
    assert differences(wire, drawn, carried) == []
    arrived = carried.request if direction == "request" else carried.answer
    broken = fault(arrived)
    assert broken != arrived
    if direction == "request":
        carried = replace(carried, request=broken)
    else:
        carried = replace(carried, answer=broken)
    assert differences(wire, drawn, carried) != []


def _on_another_road(place: str, body: Asked, lines: list[bytes]) -> Drawn:
    """Write an exchange by hand, on the first of the roads that say their model in *place*."""
    road = next(road for road in ROADS if road.place == place)
    drawn = _written(lines, body, [], b"{}")
    head = drawn.request.message.head.replace(CHAT.encode(), road.path.encode())
    facts = set(drawn.request.facts)
    if place == PATH:
        facts -= {"where it goes by model", "where the route sends another name"}
        facts.add("where it goes by path and has one")
    request = replace(
        drawn.request,
        raw=head + body.text,
        message=replace(drawn.request.message, head=head),
        road=road,
        target=road.target,
        facts=frozenset(facts),
    )
    return Drawn(request, drawn.reply)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        (FORM, b"\xff\r\n", b"\xff\n"),
        (FORM, OTHER.encode(), b"alias"),
        (URL, QUOTED.encode(), b"alias"),
        (URL, QUOTED.encode(), QUOTED.replace("%20", "+").encode()),
        (URL, b'"alias"', b'"other"'),
        (PATH, b"Content-Length: ", b"X-Length: "),
        (PATH, b'"alias"', b'"other"'),
        (PATH, b"POST ", b"PUT "),
    ],
)
async def test_planted_faults_elsewhere(wire: Wire, place: str, old: bytes, new: bytes) -> None:
    """The oracle sees what is changed, or left, in forms, in paths, and in what goes by path."""
    if place == FORM:
        lines = [b"Content-Type: multipart/form-data; boundary=x"]
        part = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
        body = Asked(part % b"model", b"alias", b"\r\n" + part % b"f" + b"\xff\r\n--x--\r\n", b"x")
    else:
        lines, body = [], Asked(b'{"model":', b'"alias"', b"}")
    drawn = _on_another_road(place, body, lines)
    carried = await wire.carry(drawn)
    assert differences(wire, drawn, carried) == []
    head, after = carried.request.head, carried.request.body
    broken = Message(head.replace(old, new), after.replace(old, new))
    assert broken != carried.request
    assert differences(wire, drawn, replace(carried, request=broken)) != []


async def test_an_announced_edit_that_is_not_made(wire: Wire) -> None:
    """The oracle also sees that something was not removed, not added, or not replaced."""
    asked = Asked(b'{"model":', b'"alias"', b"}")
    drawn = _written([b"Cookie: a=b"], asked, [b"Set-Cookie: a=b"], b"{}")
    carried = await wire.carry(drawn)
    assert differences(wire, drawn, carried) == []
    for request, answer in (
        (drawn.request.message, carried.answer),
        (carried.request, drawn.reply.message),
    ):
        assert differences(wire, drawn, Carried(request, answer, ends=False)) != []
