"""Secrets, and how one is presented upstream.

A `Secret` has no printable form: `repr`, `str`, `format`, JSON and pickle all refuse or mask.
The one way to its text is `reveal`, which is called where bytes go onto the wire and nowhere else.
"""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

_PRESENTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class Secret:
    """A secret text, with *source*: where an operator finds it (`OPENAI_API_KEY`). Each change of the
    text is another *version*.
    """

    __slots__ = ("_text", "source", "version")

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self.source = source
        self.version = 0

    def reveal(self) -> str:
        """Return the text itself, for the wire."""
        return self._text

    @property
    def known(self) -> bool:
        """Return whether there is a text yet."""
        return bool(self._text)

    def refused(self) -> None:
        """Take note that the upstream would not have it."""

    def identity(self) -> object:
        """Return what tells this secret from another one, without saying it."""
        return self.source, hash(self._text)

    def mask(self) -> str:
        """Return enough to tell two secrets apart, too little to use one."""
        tail = self._text[-4:] if len(self._text) >= 16 else ""
        return f"…{tail}"

    def __repr__(self) -> str:
        return f"Secret({self.source})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not written anywhere")


class LiveSecret(Secret):
    """A secret that changes while we run: its text is the last good one, empty before the first.

    *stale* is set to have it read anew before its time. It is *known_as* what it is read from,
    where its source does not say all of that.
    """

    __slots__ = ("_known_as", "stale")

    def __init__(self, text: str, source: str, known_as: object = None) -> None:
        super().__init__(text, source)
        self._known_as = known_as or source
        self.stale = threading.Event()

    def replace(self, text: str) -> None:
        """Let *text* be the secret from now on."""
        self._text = text
        self.version += 1

    def refused(self) -> None:
        self.stale.set()

    def identity(self) -> object:
        return self._known_as

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def is_presentable(text: str) -> bool:
    """Return whether *text* can be a header's value as it is (RFC 9110 section 5.5)."""
    return _PRESENTABLE.fullmatch(text) is not None


Form = tuple[str, str]
"""How a credential is presented: in which header, and with what before it."""

FORMS: dict[str, Form] = {
    "bearer": ("Authorization", "Bearer "),
    "x-api-key": ("x-api-key", ""),
    "api-key": ("api-key", ""),
    "apikey": ("apikey", ""),
    "x-goog-api-key": ("x-goog-api-key", ""),
}
"""The presentations vendors use, by the name a preset calls them."""


@dataclass(frozen=True, slots=True, eq=False)
class Credential:
    """A *secret* and the *form* in which an upstream wants it; *forms*, where a dialect differs."""

    secret: Secret
    form: Form = FORMS["bearer"]
    forms: Mapping[str, Form] = field(default_factory=dict)

    def line(self, dialect: str) -> tuple[bytes, bytes]:
        """Return the header to send to an endpoint of *dialect*, name and value."""
        header, prefix = self.forms.get(dialect, self.form)
        return header.encode("ascii"), (prefix + self.secret.reveal()).encode("latin-1")

    def masked(self, dialect: str) -> str:
        """Return the header as `explain` shows it."""
        header, prefix = self.forms.get(dialect, self.form)
        return f"{header}: {prefix}{self.secret.mask()}"

    def headers(self) -> set[str]:
        """Return the names, in lower case, of every header that it may go into."""
        return {header.lower() for header, _ in (self.form, *self.forms.values())}
