"""Rules: what must hold."""

from collections.abc import Callable, Mapping
from inspect import isfunction
from typing import ClassVar


class Broken(AssertionError):
    """A rule does not hold."""


class Rules:
    """Facts, and what must hold of them: each public method of a class is a rule; it returns whether it
    holds, and its docstring is what it says.
    """

    _rules: ClassVar[Mapping[str, Callable[..., object]]]

    def __init_subclass__(cls) -> None:
        cls._rules = {
            name: rule
            for name, rule in vars(cls).items()
            if isfunction(rule) and not name.startswith("_")
        }

    def check(self) -> None:
        """Raise `Broken` with the first rule that does not hold."""
        for name, rule in self._rules.items():
            if not rule(self):
                raise Broken(f"{name}: {rule.__doc__}\n{self!r:.3000}")
