"""What is being made into a snapshot: the parsed tables, the file as it is written, and what is wrong
with it so far.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from proxy.config import guessable
from proxy.config.live import Live
from proxy.config.presets import Preset
from proxy.config.problems import Path, Problem, dotted, suggest
from proxy.config.reading import Filler, source_of
from proxy.config.tables import File
from proxy.credentials import LiveSecret, Secret, is_presentable
from proxy.headers import HOP_BY_HOP
from proxy.patterns import Pattern

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""Matches a header's name (RFC 9110 section 5.6.2)."""
FRAMING = {"host", "content-length", "expect"} | {name.decode() for name in HOP_BY_HOP}
"""Let nobody set these headers, which say where a message ends, or belong to one hop."""


class Draft:
    """One *file* on its way to a snapshot.

    *written* is the file as it is written, for what messages quote and where secrets come from;
    *problems* are collected, none stops the next one from being found; *notes* stop nothing. *live*
    are the secrets that change while we run. *keyed*: keys were in force before, see `Source`;
    *closed* names the surfaces that ask for keys for no other reason.
    """

    def __init__(
        self,
        file: File,
        written: Mapping[str, Any],
        filler: Filler,
        presets: Mapping[str, Preset],
        *,
        keyed: bool = False,
    ) -> None:
        self.file = file
        self.written = written
        self.filler = filler
        self.presets = presets
        self.keyed = keyed
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.live: list[Live] = []
        self.closed: list[str] = []
        self._guessable = guessable.digests()

    def problem(self, path: Path, message: str) -> None:
        """Note that *message* is wrong at *path*."""
        self.problems.append(Problem(path, message))

    def note(self, path: Path, message: str) -> None:
        """Note what *message* says of *path*: it works, and may not be what is meant."""
        self.notes.append(Problem(path, message))

    def weigh(self, path: Path, text: str | None, digest: bytes, *, exposed: bool) -> None:
        """Refuse the secret at *path*, which opens this proxy, if it can be guessed; where nobody is
        *exposed* to it who is not on this machine, note it. Its *text* may not be known.
        """
        weakness = guessable.weakness(text, digest, self._guessable)
        if weakness is None:
            return
        make = "make one with `trunkline keys new NAME`"
        if exposed:
            self.problem(path, f"{weakness}; {make}")
        else:
            self.note(path, f"{weakness}: good on this machine only, refused beyond; {make}")

    def at(self, path: Path) -> object:
        """Return what is written at *path*."""
        value: Any = self.written
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def is_told(self, table: str, name: str) -> bool:
        """Return whether *name* is in *table* of the file, so that its own problem is told there."""
        tables = self.written.get(table)
        return isinstance(tables, Mapping) and name in tables

    def hint(self, path: Path, name: str, valid: Iterable[str]) -> str:
        """Suggest one of *valid* for what stands at *path*, unless that came from a variable."""
        return suggest(name, valid) if self.at(path) == name else ""

    def quoted(self, path: Path) -> str:
        """Return what is written at *path*, in quotes."""
        return f'"{self.at(path)}"'

    def patterns(self, texts: Iterable[str], path: Path) -> tuple[Pattern, ...]:
        """Read the patterns at *path*."""
        for index, text in enumerate(texts):
            self.check_pattern(text, (*path, index))
        return tuple(map(Pattern.parse, texts))

    def check_pattern(self, name: str, path: Path) -> None:
        """Check that *name* is a model string, perhaps with a `*` at its end."""
        if not name or "*" in name[:-1] or not name.isprintable():
            self.problem(path, "must be a model string; a `*` may only end it")

    def secret(self, text: str, path: Path) -> Secret:
        """Return the secret *text* that stands at *path*."""
        return self.checked(Secret(text.strip(), source_of(self.at(path), dotted(path))), path)

    def living(self, text: str, path: Path) -> Secret:
        """Return the secret *text* that stands at *path*, and follows the files that it comes from."""
        secret = self.secret(text, path)
        written = self.at(path)
        files = self.filler.files(written)
        if not files or not isinstance(written, str):
            return secret
        return self.follow(secret, files, lambda: self.filler.text(written).strip())

    def follow(self, secret: Secret, files: Iterable[str], read: Callable[[], str]) -> Secret:
        """Return *secret* as one that is *read* anew when one of *files* changes."""
        live = LiveSecret(secret.reveal(), secret.source)
        self.live.append(Live(live, read=read, files=tuple(files)))
        return live

    def checked(self, secret: Secret, path: Path) -> Secret:
        """Return *secret*, which a header must be able to hold."""
        text = secret.reveal()
        if not text.strip():
            self.problem(path, f"the secret from {secret.source} is empty")
        elif not is_presentable(text):
            self.problem(
                path, f"the secret from {secret.source} has a character no header can hold"
            )
        elif text[0] in "'\"" and text[-1] == text[0]:
            self.note(path, f"the secret from {secret.source} has quotes around it: leave them out")
        elif text.lower().startswith("bearer ") and not self._says_header(path):
            said = '"Bearer ", which is put there where it belongs: leave it out'
            self.note(path, f"the secret from {secret.source} begins with {said}")
        return secret

    def _says_header(self, path: Path) -> bool:
        """Return whether the secret at *path* goes into a header of its own, just as it is."""
        table = self.at(path[:-1])
        return isinstance(table, Mapping) and "header" in table
