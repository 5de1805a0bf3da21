"""Where `model` stands in a form, what is left of the form, and which forms are refused."""

import email
import os
import re
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxy.model import form as scanner
from proxy.model.body import BodyError, Found, splice
from proxy.model.form import boundary_of


def find_model(body: bytes, boundary: bytes) -> Found:
    """Find it in *body*, which is the same whether it came whole or in pieces."""
    try:
        found = scanner.find_model(body, boundary)
    except BodyError as error:
        with pytest.raises(BodyError) as again:
            scanner.find_model(bytearray(body), boundary)
        assert again.value.message == error.message
        raise
    assert scanner.find_model(bytearray(body), boundary) == found
    return found


B = b"----WebKitFormBoundary7MA4YWxkTrZu0gW"
FIELD = b'Content-Disposition: form-data; name="%b"\r\n\r\n%b'
FILE = (
    b'Content-Disposition: form-data; name="file"; filename="%b"\r\n'
    b"Content-Type: audio/wav\r\n\r\nRIFF"
)
MODEL = FIELD % (b"model", b"m")

Part = tuple[bytes, bytes]
"""A name and a value."""


def form(*parts: bytes, boundary: bytes = B) -> bytes:
    """Write a form of *parts*, each with its head."""
    written = b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts)
    return written + b"--%b--\r\n" % boundary


def read(body: bytes, boundary: bytes) -> list[Part]:
    """Read a form with the standard library's parser, which has nothing in common with ours."""
    head = b'Content-Type: multipart/form-data; boundary="%b"\r\n\r\n' % boundary
    parts = []
    for part in email.message_from_bytes(head + body).walk():
        if not part.is_multipart():
            name = part.get_param("name", "", "content-disposition")
            del part["content-transfer-encoding"]  # RFC 7578 section 4.7: as it stands
            value = part.get_payload(decode=True)
            assert isinstance(name, str)
            assert isinstance(value, bytes)
            parts.append((name.encode("utf-8", "surrogateescape"), value))
    return parts


def spliced(body: bytes, model: str, boundary: bytes = B) -> bytes:
    return b"".join(splice(body, find_model(body, boundary), model))


def refused(body: bytes, boundary: bytes = B) -> str:
    """Return the field that the refusal of *body* names."""
    with pytest.raises(BodyError) as caught:
        find_model(body, boundary)
    return caught.value.field


# Forms as clients write them, around contents made to look like their frame.

BOUNDARIES = st.sampled_from([B, b"x", b"-", b"-" * 30, b"a b", b"'()+_,-./:=?", b"ab" * 35])
NAMES = st.sampled_from([b"file", b"models", b"model[]", b"a; name=model", b"", b"streams"])
MODELS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12)
HEADS = st.sampled_from(
    [
        b'Content-Disposition: form-data; name="%b"\r\n',
        b'content-disposition:form-data;name="%b"\r\nContent-Type: text/plain; charset=utf-8\r\n',
        b'CONTENT-TYPE: text/plain\r\nCONTENT-DISPOSITION: Form-Data; NAME="%b" ;\r\n',
        b'Content-Transfer-Encoding: binary\r\nContent-Disposition: form-data; x=y; name="%b"\r\n',
    ]
)
FILENAMES = st.sampled_from(
    [b"", b'; filename="a.wav"', b'; filename="; name=model; x"', b"; filename*=utf-8''%c3%bc"]
)


def contents(boundary: bytes) -> st.SearchStrategy[bytes]:
    """Draw values full of what looks like the frame and is none of it."""
    pieces = [
        b"\r\n", b"\n", b"\r", b"--", b"\0\xff", boundary, b"--" + boundary, b"\r\n\r\n", MODEL,
        b"\r\n--" + boundary[:-1], b"\r\n--" + boundary + b"x\r\n" + MODEL,
    ]  # fmt: skip
    frame = re.compile(rb"(?:\r|(?<!\r)\n)--%b|\n--%b(?!x)" % ((re.escape(boundary),) * 2))
    values = st.lists(st.sampled_from(pieces) | st.binary(max_size=6), max_size=5).map(b"".join)
    return values.filter(lambda value: frame.search(b"\r\n" + value + b"\r\n-") is None)


@st.composite
def forms(draw: st.DrawFn, *, model: str | None) -> tuple[bytes, bytes, list[Part], int]:
    """Draw a form, its boundary, its parts, and where *model* or else the first delimiter stands."""
    boundary = draw(BOUNDARIES)
    body = draw(st.sampled_from([b"", b"\r\n", b"This is a form.\r\n"]))
    place = len(body)
    parts: list[tuple[Part, bytes]] = [
        ((draw(NAMES), draw(contents(boundary))), draw(FILENAMES))
        for _ in range(draw(st.integers(0, 4)))
    ]
    if model is not None:
        parts.insert(draw(st.integers(0, len(parts))), ((b"model", model.encode()), b""))
    for (name, value), filename in parts:
        head = draw(HEADS).replace(b'"%b"', b'"%b"' % name + filename)
        body += b"--" + boundary + draw(st.sampled_from([b"", b" ", b" \t"])) + b"\r\n"
        body += head + b"\r\n"
        if name == b"model":
            place = len(body)
        body += value + b"\r\n"
    body += (
        b"--" + boundary + b"--" + draw(st.sampled_from([b"", b"\r\n", b"\n", b" \r\nThe end."]))
    )
    assume(body.find(b"--" + boundary) in (0, 2, len(b"This is a form.\r\n")))
    return body, boundary, [part for part, _ in parts], place


@settings(deadline=None)
@given(st.data(), MODELS, MODELS)
def test_only_the_model_changes(data: st.DataObject, model: str, new: str) -> None:
    """The model in a form is replaced, and not one byte outside its value is another."""
    body, boundary, parts, place = data.draw(forms(model=model))
    found = find_model(body, boundary)
    end = place + len(model.encode())
    assert found == Found(model, place, end, stream=False, form=True)
    after = spliced(body, new, boundary)
    assert after == body[:place] + new.encode() + body[end:]
    expected = [(name, new.encode() if name == b"model" else value) for name, value in parts]
    assert read(after, boundary) == expected
    assert find_model(after, boundary).model == new


@settings(deadline=None)
@given(st.data(), MODELS)
def test_a_missing_model_is_inserted(data: st.DataObject, new: str) -> None:
    """A model is put before the first part where there is none, and all else stays."""
    body, boundary, parts, place = data.draw(forms(model=None))
    found = find_model(body, boundary)
    assert (found.model, found.start, found.end, found.form) == (None, place, place, True)
    after = spliced(body, new, boundary)
    assert after.startswith(body[:place])
    assert after.endswith(body[place:])
    assert read(after, boundary) == [(b"model", new.encode()), *parts]
    assert find_model(after, boundary).model == new


FRAGMENTS = st.sampled_from(
    [
        b"--x", b"\r\n--x", b"\r\n--x", b"--x\r\n", b"\n--x\n", b"\r--x\r", b"--", b"\r\n", b"\n",
        b"\r", b" ", b"\t", b"\f", b":", b";", b"=", b'"', b"\\", b'\\"', b"*", b"%6d", b"a",
        b"model", b"name", b"name=", b'name="', b'; name="model"', b"; name=model", b'; filename="',
        b"Content-Disposition", b"Content-Disposition: form-data", b"\r\n\r\n", b"\r\n--x--", b"<",
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n', b"\r\n--x--\r\n",
        b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="', b'"\r\n\r\n',
    ]
)  # fmt: skip


@settings(deadline=None, max_examples=1000)
@given(st.lists(FRAGMENTS, max_size=12).map(b"".join), st.booleans())
@example(b"", False)
@example(b'a\\\\"; name="x; name=model; y="', True)
def test_any_bytes(body: bytes, framed: bool) -> None:
    """Whatever a form is, it is refused or another parser finds the same model in it."""
    if framed:
        file = b'Content-Disposition: form-data; name="f"; filename="' + body + b'"\r\n\r\n'
        body = form(file, boundary=b"x")
    try:
        found = find_model(body, b"x")
    except BodyError:
        return
    models = [value for name, value in read(body, b"x") if name == b"model"]
    assert [one for one in models if one] == ([] if found.model is None else [found.model.encode()])


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b"multipart/form-data;boundary=abc", b"abc"),
        (b"Multipart/Form-Data; BOUNDARY=aBc", b"aBc"),
        (b' multipart/form-data ; charset=UTF-8;\tboundary="abc" ', b"abc"),
        (b'multipart/form-data; boundary="abc"; charset="utf-8"; x=y', b"abc"),
        (b"multipart/form-data; boundary=abc;", b"abc"),
        (b'multipart/form-data; x="; boundary=no"; boundary=abc', b"abc"),
        (b'multipart/form-data; boundary="a b\'()+_,-./:=?"', b"a b'()+_,-./:=?"),
        (b"multipart/form-data; boundary=" + b"-" * 70, b"-" * 70),
        (b"application/json", None),
        (b"multipart/mixed; boundary=abc", None),
        (b"multipart/form-data-x; boundary=abc", None),
        (b"text/plain; x=multipart/form-data; boundary=abc", None),
        (b"", None),
    ],
)
def test_boundary(content_type: bytes, boundary: bytes | None) -> None:
    """A form's boundary is read as RFC 2046 writes it, and no other type has one."""
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "parameters",
    [
        b"", b";", b" boundary=abc", b", boundary=abc", b"; boundary", b"; boundary=",
        b'; boundary=""', b"; boundary=a; boundary=a", b"; boundary=a; Boundary=b",
        b"; boundary*=utf-8''a", b"; boundary*0=a", b"; boundary=a; boundary*=b", b"; boundary=a b",
        b"; boundary =a", b"; boundary= a", b'; boundary="a', b'; boundary="a"b', b"; boundary=a/b",
        b'; boundary="a\\b"', b'; boundary="a "', b'; boundary="a;b"', b"; boundary=a~b",
        b'; boundary="\xc3\xbc"', b"; boundary=" + b"a" * 71, b"; boundary=a; charset=utf-7",
        b"; boundary=a; charset=utf-16", b"; boundary=a; charset*=utf-7", b"; boundary=a;; x=y",
    ],
)  # fmt: skip
def test_no_boundary(parameters: bytes) -> None:
    """A form without one usable boundary, or whose names mean others in its charset, is refused."""
    with pytest.raises(BodyError) as caught:
        boundary_of(b"multipart/form-data" + parameters)
    assert caught.value.field == ""


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="model"',
        b"Content-Disposition: form-data; name=model",
        b'content-disposition:FORM-DATA;NAME="model"',
        b'Content-Disposition: form-data; x="; name=file"; name="model"',
        b'Content-Disposition: form-data; x=y ; name="model"; ',
        b'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain; charset=UTF-8',
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: 8BIT',
        b'Content-Disposition: form-data; name="model"; x="\\"y\\""',
    ],
)
def test_a_model_is_seen(head: bytes) -> None:
    """A part is the model however a client may write its head."""
    part = head + b"\r\n\r\nm"
    for parts in ([part], [FILE % b"a", part], [part, FILE % b"a"]):
        body = form(*parts)
        place = body.index(part) + len(part) - 1
        assert find_model(body, B) == Found("m", place, place + 1, stream=False, form=True)


@pytest.mark.parametrize("more", [b"", b"\r\nX-A: 1"])
def test_a_length_of_its_own(more: bytes) -> None:
    """Where the model's part says how long it is, that goes with the model it was true of."""
    name = b'Content-Disposition: form-data; name="model"'
    body = form(FILE % b"a", name + b"\r\nContent-Length: 1" + more + b"\r\n\r\nm")
    found = find_model(body, B)
    assert found.model == "m"
    expected = form(FILE % b"a", name + more + b"\r\n\r\nlonger")
    assert b"".join(splice(body, found, "longer")) == expected


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="file"; filename="x; name=\\"model\\""',
        b'Content-Disposition: form-data; name="file"; filename="a; name=model"',
        b'Content-Disposition: form-data; filename="a; name=model"; name="file"',
        b'Content-Disposition: form-data; name="file"; filename="my \\"file\\".txt"',
        b'Content-Disposition: form-data; name="file"; filename="C:\\a\\b.txt"',
        b'Content-Disposition: form-data; name="file"; filename="%22; name=%22model%22"',
        b'Content-Disposition: form-data; name="file; name=model"',
        b'Content-Disposition: form-data; name="file"; xname="model"',
        b'Content-Disposition: form-data; name="file"\r\nX-Name: form-data; name="model"',
        b'Content-Disposition: form-data; name="file"\r\nContent-Type: text/plain; name="model"',
        b'Content-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: base64',
        b'Content-Disposition: form-data; name="model%5B%5D"',
        b'Content-Disposition: form-data; name=""',
        'Content-Disposition: form-data; name="mödel"; filename="ü"'.encode(),
    ],
)
def test_a_look_alike_is_not_the_model(head: bytes) -> None:
    """A part is not the model because its file's name, or another header of it, says so."""
    assert find_model(form(head + b"\r\n\r\nother"), B).model is None
    assert find_model(form(head + b"\r\n\r\nother", MODEL), B).model == "m"


DISPUTED = [
    b'form-data; name="file"; name="model"',
    b'form-data; name="model"; NAME="file"',
    b"form-data; name*=utf-8''model",
    b"form-data; name=\"file\"; name*=utf-8''model",
    b'form-data; name*0="mo"; name*1="del"',
    b'form-data; filename="a\\"; name="model"',
    b'form-data; filename="a\\\\"; name="model"',
    b'form-data; filename="a\\\\"; name="x; name=model; y="',
    b'form-data; name="file\\"; name="model"',
    b'form-data; filename="\\"; name=model; x=\\""; name="file"',
    b'form-data; name="mo\\del"',
    b'form-data; name="mod%65l"',
    b'form-data; name=" model"',
    b'form-data; name="model "',
    b'form-data; name="st\\ream"',
    b'form-data; name="=?utf-8?q?model?="',
    b"form-data; name='model' x",
    b"form-data; name=model x",
    b"form-data; name=mo(x)del",
    b"form-data; name=<model>",
    b"form-data; name = model",
    b"form-data; name= model",
    b'form-data; name="model',
    b'form-data; name="model"x',
    b'form-data; name=x"model"',
    b"form-data, name=model",
    b"form-data; name",
    b"form-data;; name=model",
    b'name="model"',
    b'attachment; name="model"',
    b'form-data x; name="model"',
    b"form-data; name=model" + b"".join(b"; x%d=y" % n for n in range(20)),
    b"form-data",
    b"",
]


@pytest.mark.parametrize("disposition", DISPUTED)
def test_a_disputed_name(disposition: bytes) -> None:
    """A part that one parser may call the model and another may not is refused."""
    part = b"Content-Disposition: %b\r\n\r\nother" % disposition
    assert refused(form(part)) == ""
    assert refused(form(MODEL, part)) == ""


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n",
        b'\r\nContent-Disposition: form-data; name="model"\r\n',
        b"Content-Type: text/plain\r\n",
        b'Content-Disposition : form-data; name="model"\r\n',
        b' Content-Disposition: form-data; name="model"\r\n',
        b'Content-Disposition: form-data;\r\n name="model"\r\n',
        b'Content-Disposition: form-data; name="file"\r\n\tx\r\n',
        b'Content-Disposition: form-data; name="file"\nContent-Disposition: x; name="model"\r\n',
        b'Content-Disposition: form-data; name="file"\rContent-Disposition: x; name="model"\r\n',
        b'Content-Disposition: form-data; name="model"\n',
        b'Content-Disposition: form-data; name="model"\n\n\r\n',
        b'Content-Disposition: form-data; name="model\0"\r\n',
        b'Content-Disposition: form-data; name="file"\r\nno header\r\n',
        b'Content-Disposition: form-data; name="file"\r\n: empty\r\n',
        b'Content-Disposition: form-data; name="file"\r\n' * 2,
        b'Content-Disposition: form-data; name="file"\r\ncontent-disposition: form-data; name="model"\r\n',
        b'Content-Disposition: form-data; name="file"\r\nContent-Length: 1\r\n',
        b'Content-Disposition: form-data; name="file"\r\n' + b"X: " + b"y" * 8192 + b"\r\n",
        b'Content-Disposition: form-data; name="file"\r\n'
        + b"".join(b"X-%d: y\r\n" % n for n in range(20)),
    ],
)
def test_a_malformed_head(head: bytes) -> None:
    """A part whose head is not a few plain lines, each of its own name, is refused."""
    assert refused(form(MODEL, head + b"\r\nother")) == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"model=m",
        b'{"model":"m"}',
        b"--",
        b"--" + B,
        b"--" + B + b"\r\n",
        b"--" + B + b"\r\n" + MODEL,
        b"--" + B + b"\r\n" + MODEL + b"\r\n--" + B,
        b"--" + B + b"\r\n" + MODEL + b"\r\n--" + B + b"\r\n",
        b"--" + B + b"\r\n" + MODEL + b"\r\n--" + B + b"-",
        b"--" + B + b"\r\n" + MODEL + b"--" + B + b"--\r\n",
        b"--" + B + b"\r\n" + MODEL + b"\n--" + B + b"--\r\n",
        b"--" + B + b"\r\n--" + B + b"--\r\n",
        b"--" + B + b"\r\n\r\n--" + B + b"--\r\n",
        b"--" + B + b"\r\n" + MODEL[:-1] + b"--" + B + b"--\r\n",
        b"--" + B + b"--x\r\n",
        b"--" + B + b"\n" + MODEL + b"\n--" + B + b"--\n",
        b"-" + form(MODEL),
        b"\n" + form(MODEL),
        b"x\n" + form(MODEL),
        b"--" + B + b"x\r\n" + form(MODEL),
        form(MODEL, boundary=B.lower()),
        form(MODEL) + form(FIELD % (b"model", b"other")),
        form(MODEL) + b"--" + B,
        form(MODEL)[:-5],
    ],
)
def test_not_a_form(body: bytes) -> None:
    """What is not framed as one form, from the first delimiter to the last, is refused."""
    assert refused(body) == ""


@pytest.mark.parametrize(
    "line",
    [
        b"\n--%b\r\n", b"\r--%b\r\n", b"\n--%b\n", b"\r--%b\r", b"\r\n--%b\n", b"\r\n--%b\r",
        b"\r\n--%b \n", b"\r\n--%b\f\r\n", b"\r\n--%b\v\r\n", b"\r\n--%b--x\r\n", b"\n--%b--\r\n",
        b"\r\n--%b---\r\n",
    ],
)  # fmt: skip
def test_a_disputed_delimiter(line: bytes) -> None:
    """A line inside a file that only some parsers take for a delimiter is refused."""
    hidden = line % B + FIELD % (b"model", b"other")
    assert refused(form(FILE % b"a" + hidden)) == ""
    assert refused(form(MODEL, FILE % b"a" + hidden)) == ""


@pytest.mark.parametrize(
    "line", [b"\r\n--%bx\r\n", b"\r\n--%b x\r\n", b"\r\n--%b-x\r\n", b"--%b\r\n", b"\r\n-%b\r\n"]
)
def test_a_longer_line_is_content(line: bytes) -> None:
    """A line that begins like a delimiter and goes on, and a delimiter within a line, are content."""
    file = FILE % b"a" + line % B + FIELD % (b"model", b"other")
    body = form(file, MODEL)
    assert find_model(body, B).model == "m"
    assert spliced(body, "new") == form(file, FIELD % (b"model", b"new"))
    assert find_model(form(file), B).model is None


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\n", b" \t\r\n", b"\r\nThe end.", b"\r\n" + MODEL])
def test_what_follows_the_end(end: bytes) -> None:
    """What follows the last delimiter is ignored."""
    body = form(FILE % b"a").removesuffix(b"\r\n") + end
    assert find_model(body, B).model is None
    assert spliced(body, "new") == form(FIELD % (b"model", b"new"), FILE % b"a")[:-2] + end


@pytest.mark.parametrize("before", [b'{"model":"b"}', b' \r\n{"model":"b"}', b'[{"model":"b"}]'])
def test_json_before_a_form(before: bytes) -> None:
    """JSON before the first part is refused: some read that first, and look at nothing else."""
    part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--b--\r\n'
    assert find_model(b"preamble\r\n" + part, b"b").model == "a"
    with pytest.raises(BodyError, match="JSON"):
        find_model(before + b"\r\n" + part, b"b")


def test_an_empty_form() -> None:
    """A model is put even into a form that has no part at all."""
    assert find_model(form(), B).start == 0
    assert spliced(form(), "new") == form(FIELD % (b"model", b"new"))


def test_two_models() -> None:
    """A form with two models is refused, even if they agree."""
    assert refused(form(MODEL, FILE % b"a", MODEL)) == "model"


@pytest.mark.parametrize(
    "more",
    [
        b'; filename=""',
        b'; filename="m.txt"',
        b"; FileName*=utf-8''m.txt",
        b"\r\nContent-Transfer-Encoding: base64",
        b"\r\nContent-Transfer-Encoding: quoted-printable",
        b"\r\nContent-Type: text/plain; charset=utf-7",
    ],
)
def test_a_model_is_not_a_file(more: bytes) -> None:
    """A model that is a file, or encoded, is refused: not every upstream reads such a field."""
    head = b'Content-Disposition: form-data; name="model"' + more
    assert refused(form(head + b"\r\n\r\nm")) == "model"


@pytest.mark.parametrize(
    "model",
    [
        b"\xff", b"m\xc3", "m".encode("utf-16"), b"a\0b", b"a\r\nb", b"\n", b"a\tb", b"\x7f",
        "\x85".encode(), b"m" * 1025, "ü".encode() * 513, b"m" * 10**6,
    ],
)  # fmt: skip
def test_an_unreasonable_model(model: bytes) -> None:
    """A model that is no text, very long or has control characters is refused by its name."""
    assert refused(form(FIELD % (b"model", model), FILE % b"a")) == "model"


@pytest.mark.parametrize("model", ["m", "m" * 1024, "ü/é:7b", " m ", '"m"', "\U0001f600"])
def test_a_model_is_taken_as_it_stands(model: str) -> None:
    """A model is the text of its part, neither trimmed nor unquoted."""
    assert find_model(form(FIELD % (b"model", model.encode())), B).model == model


@pytest.mark.parametrize(
    ("value", "stream"),
    [
        (b"true", True), (b"True", True), (b"1", True), (b"false", False), (b"", False),
        (b"0", False), (b" true", False), (b"true\r\n", False), (b"truetrue", False),
        (b'"true"', False), (b"1" * 100, False),
    ],
)  # fmt: skip
def test_stream(value: bytes, stream: bool) -> None:
    """A stream is asked for by a part of that name that says so, and by nothing else."""
    part = FIELD % (b"stream", value)
    assert find_model(form(part), B).stream is stream
    assert find_model(form(MODEL, part, FILE % b"a"), B).stream is stream
    assert not find_model(form(FIELD % (b"streams", value), FILE % b"a"), B).stream
    assert refused(form(part, MODEL, part)) == "stream"


def test_an_empty_model_is_none() -> None:
    """A part `model` without a text names no model; another one goes into its place."""
    body = form(FIELD % (b"model", b""), FILE % b"a")
    found = find_model(body, B)
    assert (found.model, found.start) == (None, found.end)
    assert read(spliced(body, "new", B), B)[0] == (b"model", b"new")


@pytest.mark.parametrize("name", ["Model", "MODEL", "Stream", "ſtream", "ﬅream"])
def test_folded_names(name: str) -> None:
    """A field that only a reader who folds case takes for one of ours is refused, alone or beside it."""
    part = FIELD % (name.encode(), b"x")
    for body in (form(part), form(MODEL, part), form(part, MODEL)):
        assert refused(body) == name


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (form(*[FIELD % (b"x", b"")] * 1999), True),
        (form(*[FIELD % (b"x", b"")] * 2000), False),
        (form(FILE % b"a" + (b"\r\n--" + B + b"x") * 1998), True),
        (form(FILE % b"a" + (b"\r\n--" + B + b"x") * 1999), False),
        (form(*[b"X: " + b"y" * 4000 + b"\r\n" + FIELD % (b"x", b"")] * 250), True),
        (form(*[b"X: " + b"y" * 4000 + b"\r\n" + FIELD % (b"x", b"")] * 270), False),
    ],
)
def test_bounds(body: bytes, fits: bool) -> None:
    """A form of thousands of parts, or with a megabyte of heads, is refused before it costs."""
    if fits:
        assert find_model(body, B).model is None
    else:
        assert refused(body) == ""


def _fill(piece: bytes) -> Callable[[int], bytes]:
    return lambda size: piece * (size // len(piece))


DASHES = b"-" * 70
SHAPES: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "random": (B, os.urandom),
    "zeros": (B, bytes),
    "almost delimiters": (B, _fill(b"\r\n--" + B[:-1])),
    "longer delimiters": (B, _fill(b"\r\n--" + B + b"x")),
    "line breaks": (B, _fill(b"\r\n")),
    "dashes": (DASHES, _fill(b"-")),
    "lines of dashes": (DASHES, _fill(b"\r\n--" + DASHES[:-1])),
    "all but the first": (b"b" + b"a" * 69, _fill(b"a")),
    "all but the last": (b"a" * 69 + b"b", _fill(b"a")),
    "periodic": (b"ab" * 35, _fill(b"ab")),
    "one byte": (b"x", _fill(b"\r\n--")),
    "padding": (b"x", _fill(b"\r\n--x" + b" " * 10**4 + b"y")),
    "parts": (b"x", _fill(b"\r\n--x\r\n" + FIELD % (b"a", b"b"))),
    "heads": (b"x", _fill(b"\r\n--x\r\n" + (FILE % (b'\\"' * 4000)))),
    "parameters": (b"x", _fill(b"\r\n--x\r\n" + (FILE % (b'\\"' + b"; name" * 1300)))),
}


def _cpu(body: bytes, boundary: bytes) -> float:
    before = time.process_time()
    try:
        assert find_model(body, boundary).model == "m"
    except BodyError as error:
        assert error.field == ""  # beyond the bounds
    return time.process_time() - before


@pytest.mark.parametrize("shape", SHAPES)
def test_cost(shape: str) -> None:
    """Five times as big a form takes five times as long, whatever it is full of."""
    boundary, fill = SHAPES[shape]
    bodies = [
        form(FILE % b"a" + fill(size), MODEL, boundary=boundary) for size in (5_000_000, 25_000_000)
    ]
    small, large = (min(_cpu(body, boundary) for _ in range(2)) for body in bodies)
    assert large < max(0.1, 15 * small)
    assert large < 1.0


def test_files_are_not_copied() -> None:
    """A form is read and spliced without a copy of the files in it."""
    body = form(FILE % b"a" + bytes(10**7), MODEL, FILE % b"b" + bytes(10**7))
    tracemalloc.start()
    try:
        found = scanner.find_model(body, B)
        pieces = splice(body, found, "new")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.model == "m"
    assert peak < 10**6
    assert [piece.obj is body for piece in pieces if isinstance(piece, memoryview)] == [True, True]
