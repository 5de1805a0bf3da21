"""Secrets, and how one is presented upstream.

A `Secret` has no printable form: `repr`, `str`, `format`, JSON and pickle all refuse or mask.
The one way to its text is `reveal`, which is called where bytes go onto the wire and nowhere else.
"""

from dataclasses import dataclass
from typing import NoReturn


class Secret:
    """A secret text, with *source*: where an operator finds it (`OPENAI_API_KEY`)."""

    __slots__ = ("_text", "source")

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self.source = source

    def reveal(self) -> str:
        """Return the text itself, for the wire."""
        return self._text

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


@dataclass(frozen=True, slots=True)
class Credential:
    """A *secret* and the form in which an upstream wants it: *header*, and a *prefix* before it."""

    header: str
    prefix: str
    secret: Secret

    def line(self) -> tuple[bytes, bytes]:
        """Return the header to send, name and value."""
        return self.header.encode("ascii"), (self.prefix + self.secret.reveal()).encode("latin-1")

    def masked(self) -> str:
        """Return the header as `explain` shows it."""
        return f"{self.header}: {self.prefix}{self.secret.mask()}"


FORMS: dict[str, tuple[str, str]] = {
    "bearer": ("Authorization", "Bearer "),
    "x-api-key": ("x-api-key", ""),
    "api-key": ("api-key", ""),
    "apikey": ("apikey", ""),
    "x-goog-api-key": ("x-goog-api-key", ""),
}
"""The presentations vendors use, by the name a preset calls them: header and prefix."""


def present(form: str, secret: Secret) -> Credential:
    """Make the credential that presents *secret* in *form*, a name out of `FORMS`."""
    header, prefix = FORMS[form]
    return Credential(header, prefix, secret)
