"""Model strings as routes, keys and surfaces write them: `gpt-4o`, `qwen/*`, `claude-*`, `*`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """A model string, or every string that begins with *literal* where *prefix* is true."""

    literal: str
    prefix: bool

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read a pattern as it is written."""
        return cls(text[:-1], True) if text.endswith("*") else cls(text, False)

    def matches(self, model: str) -> bool:
        """Return whether *model* is meant. Case counts, and the slash is part of the name."""
        return model.startswith(self.literal) if self.prefix else model == self.literal

    def meet(self, other: "Pattern") -> "Pattern | None":
        """Return the pattern of what this and *other* both match, None where that is nothing."""
        narrow, wide = sorted((self, other), key=lambda one: (one.prefix, -len(one.literal)))
        return narrow if wide.matches(narrow.literal) else None

    @property
    def anything(self) -> bool:
        """Return whether every string is meant: `*`."""
        return self.prefix and not self.literal

    def __str__(self) -> str:
        return self.literal + "*" if self.prefix else self.literal
