"""The keys of callers."""

from typing import Any

import pytest

from tests.config.files import HASH, ROUTES, file_of, told


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"a": "same-key", "b": "same-key"}, "keys.b"),
        ({"a": "mobile", "b": {"hash": HASH}}, "keys.b"),
        ({"a": {"hash": HASH}, "b": {"hash": HASH}}, "keys.b"),
        ({"a": {"hash": HASH, "secret": "x"}}, "keys.a"),
        ({"a": {}}, "keys.a"),
        ({"a": {"models": ["x"]}}, "keys.a"),
        ({"a": {"hash": ""}}, "keys.a.hash"),
        ({"a": {"hash": HASH[7:]}}, "keys.a.hash"),
        ({"a": {"hash": HASH.upper()}}, "keys.a.hash"),
        ({"a": {"hash": HASH[:-1]}}, "keys.a.hash"),
        ({"a": {"hash": HASH + "0"}}, "keys.a.hash"),
        ({"a": {"hash": HASH + "\n"}}, "keys.a.hash"),
        ({"a": {"hash": HASH.replace("sha256", "sha512")}}, "keys.a.hash"),
        ({"a": {"hash": HASH[:-1] + "g"}}, "keys.a.hash"),
        ({"a": {"secret": "x", "expires": "2027-06-30"}}, "keys.a.expires"),
        ({"a": {"secret": "x", "expires": 2027}}, "keys.a.expires"),
        ({"a": {"secret": "x", "models": "gpt"}}, "keys.a.models"),
    ],
)
def test_bad_keys(keys: dict[str, Any], path: str) -> None:
    """A key is one text or one hash, differs from all others, and its rights are well formed."""
    assert list(told(file_of({"keys": keys, "routes": {"m": "openai/x"}}))) == [path]


def test_same_key_twice_names_the_other() -> None:
    """Two names for one key are told with both names, and without the key."""
    problems = told('[keys]\na = "${K}"\nb = "${K}"\n' + ROUTES, {"K": "tk-0123456789abcdef"})
    assert problems == {"keys.b": 'is the same key as "a"'}


def test_expires_is_shown_how() -> None:
    """Who writes the last day as text is told that it is a date without quotes."""
    toml = f'[keys.k]\nsecret = "x"\nexpires = "2027-06-30"\n{ROUTES}'
    assert "date" in told(toml)["keys.k.expires"]
