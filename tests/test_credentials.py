"""A secret has no printable form; a credential shows it to the wire and to nobody else."""

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import structlog

from proxy.credentials import FORMS, Credential, LiveSecret, Secret, is_presentable

TEXT = "sk-proj-CANARY-0123456789-end"
SECRET = Secret(TEXT, "OPENAI_API_KEY")
LIVE = LiveSecret("sk-proj-before-9876543210-then", "OPENAI_API_KEY")
LIVE.replace(TEXT)
BOTH = pytest.mark.parametrize("secret", [SECRET, LIVE], ids=["fixed", "live"])


@dataclasses.dataclass
class Holder:
    secret: Secret


def _traceback(thing: Any) -> str:
    """Return the traceback of an error that quotes *thing*, with every local variable."""
    try:
        raise ValueError("wrong", thing)
    except ValueError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        return "".join(told.format()) + repr(error)


def _logged(thing: Any) -> str:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s %r", (thing, thing), None)
    return logging.Formatter().format(record)


FORMS_OF_PRINT: dict[str, Callable[[Any], object]] = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "format": format,
    "f-string": lambda thing: f"{thing} {thing!r} {thing!s} {thing:>80}",
    "percent": lambda thing: "%s %r" % (thing, thing),  # noqa: UP031 - the old way is the point
    "str.format": lambda thing: "{0} {0!r}".format(thing),  # noqa: UP032 - the same
    "list": lambda thing: str([thing, {"a": thing}, {thing}]),
    "pprint": pprint.pformat,
    "traceback": _traceback,
    "logging": _logged,
    "json": json.dumps,
    "json default": lambda thing: json.dumps(thing, default=str),
    "orjson": orjson.dumps,
    "orjson default": lambda thing: orjson.dumps(thing, default=str),
    "structlog": lambda thing: structlog.dev.ConsoleRenderer(colors=False)(
        None, "info", {"event": "x", "thing": thing}
    ),
    "pickle": pickle.dumps,
    "copy": lambda thing: repr(copy.deepcopy(thing)),
    "asdict": lambda thing: repr(dataclasses.asdict(Holder(thing))),
    "vars": vars,
    "dir": lambda thing: repr([getattr(thing, name) for name in dir(thing) if name[0] != "_"]),
}


@BOTH
@pytest.mark.parametrize("way", FORMS_OF_PRINT)
def test_secret_has_no_printable_form(way: str, secret: Secret) -> None:
    """No way of writing a secret down shows its text: it is masked, or refused."""
    try:
        shown = FORMS_OF_PRINT[way](secret)
    except TypeError as error:
        shown = f"{error!r} {''.join(traceback.format_exception(error))}"
    assert TEXT not in str(shown)
    assert TEXT.encode() not in (shown if isinstance(shown, bytes) else b"")


@BOTH
@pytest.mark.parametrize(
    "way", ["repr", "str", "percent", "list", "pprint", "traceback", "orjson default", "logging"]
)
def test_credential_has_no_printable_form(way: str, secret: Secret) -> None:
    """What holds a secret does not show it either."""
    assert TEXT not in str(FORMS_OF_PRINT[way](Credential(secret)))
    assert TEXT not in repr(Holder(secret))


@BOTH
@pytest.mark.parametrize("way", ["pickle", "copy", "asdict", "orjson"])
def test_secret_is_not_carried_away(way: str, secret: Secret) -> None:
    """A secret cannot be serialised or copied out of the process's hands."""
    with pytest.raises(TypeError):
        FORMS_OF_PRINT[way](secret)


@BOTH
def test_secret_says_where_it_comes_from(secret: Secret) -> None:
    """In place of its text, a secret shows where an operator finds it."""
    assert repr(secret) == "Secret(OPENAI_API_KEY)"
    assert secret.reveal() == TEXT
    assert secret.known


def test_a_secret_that_changes() -> None:
    """What a live secret has become is what is presented and masked, wherever it is held already."""
    secret = LiveSecret("", "the command gcloud")
    credentials = [Credential(secret, form) for form in FORMS.values()]
    assert not secret.known
    assert secret.mask() == "…"
    for text in ("ya29.first-0123456789", "ya29.second-987654321"):
        secret.replace(text)
        assert secret.known
        for credential in credentials:
            assert credential.line("chat")[1] == (credential.form[1] + text).encode()
            assert credential.masked("chat").endswith("…" + text[-4:])


def test_a_live_secret_is_itself() -> None:
    """Live secrets are told apart by what they are, not by what they hold, which changes."""
    one, other = LiveSecret("a", "A"), LiveSecret("a", "A")
    assert one != other
    assert one != Secret("a", "A")
    assert Secret("a", "A") != one
    before = hash(one)
    held = {one: 1, other: 2}
    one.replace("b")
    assert hash(one) == before
    assert (held[one], held[other]) == (1, 2)


def test_identity() -> None:
    """A secret is told from another one without saying it: by its source, and, if it never changes,
    by its text.
    """
    assert Secret("a", "A").identity() == Secret("a", "A").identity()
    assert Secret("a", "A").identity() != Secret("b", "A").identity()
    assert Secret("a", "A").identity() != Secret("a", "B").identity()
    live = LiveSecret("a", "A")
    before = live.identity()
    live.replace("b")
    assert live.identity() == before == LiveSecret("", "A").identity()
    assert live.identity() != LiveSecret("b", "B").identity()
    for secret in (SECRET, LIVE):
        assert TEXT not in repr(secret.identity())


def test_a_refused_secret() -> None:
    """Only a secret that can change takes note that nobody would have it."""
    SECRET.refused()
    secret = LiveSecret("a", "A")
    assert not secret.stale.is_set()
    secret.refused()
    assert secret.stale.is_set()
    assert secret.reveal() == "a"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a", True),
        ("sk-a b~!", True),
        ("", False),
        (" a", False),
        ("a ", False),
        ("a\n", False),
        ("a\nb", False),
        ("a\rb", False),
        ("a\tb", False),
        ("a\0b", False),
        ("a\x7f", False),
        ("é", False),
        ("\ud800", False),
        ("a" * 10_000, True),
    ],
)
def test_presentable(text: str, good: bool) -> None:
    """A header's value can be printable ASCII without space around it, and nothing else."""
    assert is_presentable(text) is good


def test_secrets_compare_by_text() -> None:
    """Two secrets of the same text are the same secret, wherever they come from."""
    assert Secret("a", "A") == Secret("a", "B")
    assert hash(Secret("a", "A")) == hash(Secret("a", "B"))
    assert Secret("a", "A") != Secret("b", "A")
    assert Secret("a", "A") != "a"


@pytest.mark.parametrize("length", range(1, 40))
def test_mask_keeps_the_most(length: int) -> None:
    """A mask shows at most a quarter of a secret, and nothing at all of a short one."""
    text = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH"[:length]
    shown = Secret(text, "A").mask().removeprefix("…")
    assert len(shown) <= length / 4
    assert text.endswith(shown)
    assert shown == "" or length >= 16


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    """Each form puts the secret into its own header, and its mask shows the same header."""
    header, prefix = FORMS[form]
    credential = Credential(SECRET, FORMS[form])
    assert credential.line("chat") == (header.encode(), (prefix + TEXT).encode())
    assert credential.masked("chat") == f"{header}: {prefix}…-end"
    assert credential.headers() == {header.lower()}


def test_form_by_dialect() -> None:
    """A dialect that wants another form gets that one, on the wire and in what is shown."""
    credential = Credential(SECRET, forms={"messages": FORMS["x-api-key"]})
    assert credential.line("chat") == (b"Authorization", b"Bearer " + TEXT.encode())
    assert credential.line("messages") == (b"x-api-key", TEXT.encode())
    assert credential.masked("messages") == "x-api-key: …-end"
    assert credential.headers() == {"authorization", "x-api-key"}


def test_named_header() -> None:
    """A header of the operator's own choosing carries the secret bare."""
    assert Credential(Secret("abc", "K"), ("X-Corp", "")).line("chat") == (b"X-Corp", b"abc")
