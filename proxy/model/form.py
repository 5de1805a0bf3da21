"""Find `model` and `stream` in a multipart form (RFC 7578, RFC 2046 section 5.1).

The files in it are neither parsed nor copied: the walk goes from delimiter to delimiter and reads
the short heads behind them. What two readers could take differently is refused, never guessed:
the upstream might be the other one.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from proxy.model.body import Body, BodyError, Found, in_lower_case, meant

_TOKEN = rb"[!#$%&'*+.^_`{|}~0-9A-Za-z-]++"
_TYPE = re.compile(rb"[ \t]*multipart/form-data(?=[\s;,]|\Z)", re.IGNORECASE)
# RFC 2046's characters, and the `*` of which people make boundaries on Android.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()*+_,./:=? -]{0,69}[0-9A-Za-z'()*+_,./:=?-]")
_FIRST = re.compile(rb"[ \t]*+(%b(?:/%b)?)" % (_TOKEN, _TOKEN))
_QUOTED = rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_PARAMETER = re.compile(rb"[ \t]*+;[ \t]*+(%b)=(?:(%b)|%b)" % (_TOKEN, _TOKEN, _QUOTED))
_REST = re.compile(rb"[ \t]*+;?[ \t]*+")
_HEADER = re.compile(rb"(%b):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)" % _TOKEN)
# What may follow a delimiter; *odd* is a line that only some readers take for one.
_FOLLOW = re.compile(
    rb"(?P<close>--[ \t]*+(?:[\r\n]|\Z))|(?P<part>[ \t]*+\r\n)|(?P<odd>--|[ \t\v\f]*+[\r\n])"
)
_AGAIN = re.compile(rb";\s*+name\s*+[*=]", re.IGNORECASE)
_LENGTH = re.compile(rb"(?<![^\n])content-length:[^\r]*\r\n", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CHARSETS = {b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1"}
_TRUE = {b"true", b"True", b"1"}
# Bounds on what is looked at in Python, so that only `find` grows with the body.
_DELIMITERS = 2000
_HEAD_BYTES = 8192
_HEADS_BYTES = 1024 * 1024
_HEADERS = 20
_PARAMETERS = 20
_MODEL_BYTES = 1024


def boundary_of(content_type: bytes) -> bytes | None:
    """Return the boundary of a multipart/form-data *content_type*, None of any other.

    Raises `BodyError` if a form's boundary is missing, twice there or not RFC 2046's, or if its
    charset would make other names of the names in it.
    """
    if content_type == b"application/json" or _TYPE.match(content_type) is None:
        return None
    _, parameters = _parse(content_type)
    boundary = parameters.get(b"boundary", b"")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise BodyError("the Content-Type of the form has no usable boundary")
    # Starlette decodes names and values by it: in UTF-7 `+AG0-odel` is a model.
    if parameters.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise BodyError("the Content-Type of the form has an unusual charset")
    return boundary


def find_model(body: Body, boundary: bytes) -> Found:
    """Find the parts `model` and `stream` of the form *body* with that *boundary*.

    Raises `BodyError` if *body* is not a well-formed form, if two parts are called `model`, or `stream`,
    in whatever case, or if the former is not a short plain text.
    """
    first = body.find(b"--" + boundary)
    if body[: max(first, 0)].lstrip().startswith((b"{", b"[")):
        # Many readers in Go take what begins with JSON for JSON, whatever it is called and goes on with.
        raise BodyError("the form has JSON before its first part")
    stream: bool | None = None
    found, heads = None, 0
    for begin, end in _parts(body, b"--" + boundary, first):
        headers, start = _head(body, begin, end)
        heads += start - begin
        if heads > _HEADS_BYTES:
            raise BodyError("the form has too many headers")
        parameters = _disposition(headers.get(b"content-disposition", b""))
        if parameters[b"name"] == b"stream":
            _check_only(stream, "stream")
            stream = bytes(body[start : min(end, start + 8)]) in _TRUE
        if parameters[b"name"] == b"model":
            _check_only(found, "model")
            _check_plain(headers, parameters)
            found = Found(_text(body, start, end) or None, start, end, stream=False, form=True)
            if b"content-length" in headers:  # which would be another one, and need not be there
                head = _LENGTH.sub(b"", body[begin:start])
                found.start, found.before = begin, head
    if found is None:
        before = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' % boundary
        found = Found(None, first, first, stream=False, before=before, after=b"\r\n", form=True)
    found.stream = bool(stream)
    return found


def _parts(body: Body, delimiter: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield where each part, head and all, begins and ends; *at* is the first *delimiter*.

    A line that goes on after the delimiter is content. Lines that some readers take for delimiters
    are refused: behind a bare CR or LF (werkzeug, email), or after the last one (PHP).
    """
    begin = None
    if at < 0 or body.find(b"\r" + delimiter) >= 0:
        raise BodyError("the form has no delimiter, or one in an odd place")
    for _ in range(_DELIMITERS):
        follow = _delimited(body, delimiter, at)
        if follow is not None:
            if begin is not None:
                yield begin, at - 2
            begin = follow.end()
            if follow.lastgroup == "close":
                if body.find(delimiter, begin) >= 0:
                    raise BodyError("the form goes on after its end")
                return
        elif begin is None:
            raise BodyError("the form does not begin with a delimiter")
        # The line break before a delimiter is part of it, so that no two of them overlap.
        at = body.find(b"\n" + delimiter, at + len(delimiter)) + 1
        if at == 0:
            raise BodyError("the form has no end")
    raise BodyError("the form has too many parts")


def _delimited(body: Body, delimiter: bytes, at: int) -> re.Match[bytes] | None:
    """Return how the line goes on of which *delimiter* stands *at*, None where it is content."""
    follow = _FOLLOW.match(body, at + len(delimiter))
    if follow is None:
        return None
    if follow.lastgroup == "odd" or (at > 0 and body[max(at - 2, 0) : at] != b"\r\n"):
        raise BodyError("the form has a malformed delimiter")
    return follow


def _head(body: Body, begin: int, end: int) -> tuple[dict[bytes, bytes], int]:
    """Return the headers of a part, names in lower case, and where its value starts."""
    stop = body.find(b"\r\n\r\n", begin, min(end, begin + _HEAD_BYTES))
    lines = body[begin:stop].split(b"\r\n", _HEADERS) if stop >= 0 else []
    fields = [field for line in lines if (field := _HEADER.fullmatch(line))]
    headers = {field[1].lower(): field[2].rstrip(b" \t") for field in fields}
    if not lines or len(headers) < len(lines) or len(lines) > _HEADERS:
        raise BodyError("a part of the form has a malformed head")
    # RFC 7578 section 4.8 wants it ignored. OkHttp 4 sends it, old actix obeys it.
    length = b"%d" % (end - stop - 4)
    if headers.get(b"content-length", length) != length:
        raise BodyError("a part of the form has another length than it says")
    return headers, stop + 4


def _disposition(value: bytes) -> dict[bytes, bytes]:
    """Return the parameters of a Content-Disposition (RFC 7578 section 4.2), its name among them."""
    kind, parameters = _parse(value)
    name = parameters.get(b"name")
    if kind != b"form-data" or name is None:
        raise BodyError("a part of the form has no name")
    # Names are taken as written; some readers take off escapes, of one kind or another.
    plain = unquote_to_bytes(name.replace(b"\\", b"")).strip()
    # RFC 9110 goes on after `\"`, a browser ends there, email also goes on after `\\"`: so no name
    # may follow.
    _, _, rest = value.partition(b'\\"')
    if (plain in (b"model", b"stream") and plain != name) or b"=?" in name or _AGAIN.search(rest):
        raise BodyError("a part of the form has an ambiguous name")
    text = plain.decode("utf-8", "replace")
    if meant(text) not in (None, text):
        raise in_lower_case(text)
    return parameters


def _parse(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return what *value* begins with and its parameters, as written but for case and quotes."""
    first = _FIRST.match(value)
    position = first.end() if first else 0
    parameters: dict[bytes, bytes] = {}
    while (step := _PARAMETER.match(value, position)) and len(parameters) < _PARAMETERS:
        key = step[1].lower()
        # RFC 2231 gives `name*` and `name*0` the meaning of `name`, to those who know it.
        if key in parameters or key.startswith((b"name*", b"boundary*", b"charset*")):
            raise BodyError("a header of the form has an ambiguous parameter")
        parameters[key] = step[2] or step[3] or b""
        position = step.end()
    if first is None or _REST.fullmatch(value, position) is None:
        raise BodyError("a header of the form is malformed")
    return first[1].lower(), parameters


def _check_only(earlier: object | None, name: str) -> None:
    if earlier is not None:
        raise BodyError(f"the form has two `{name}` parts", name)


def _check_plain(headers: dict[bytes, bytes], parameters: dict[bytes, bytes]) -> None:
    encoding = headers.get(b"content-transfer-encoding", b"8bit").lower()
    _, about = _parse(headers.get(b"content-type", b"text/plain"))
    if (
        any(key.startswith(b"filename") for key in parameters)
        or encoding not in (b"7bit", b"8bit", b"binary")
        or about.get(b"charset", b"utf-8").lower() not in _CHARSETS
    ):
        raise BodyError("`model` must be a plain field, not a file or encoded", "model")


def _text(body: Body, start: int, end: int) -> str:
    if end - start > _MODEL_BYTES:
        raise BodyError("`model` is too long", "model")
    try:
        model = body[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise BodyError("`model` must be UTF-8 text", "model") from None
    if _CONTROL.search(model):
        raise BodyError("`model` must be text without control characters", "model")
    return model
