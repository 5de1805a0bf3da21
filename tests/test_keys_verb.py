"""`trunkline keys new` and `keys hash`: what stands in for an admin UI."""

import os
import re
import string
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from proxy.config import load
from tests.harness.client import call, chat
from tests.harness.proxy import serving

ROOT = Path(__file__).parents[1]
ALPHABET = string.ascii_letters + string.digits
ROUTES = '[routes]\nm = "sandbox/echo"\n"other/*" = "sandbox/echo"\n'


class Run:
    """What one run of the command left."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err
        assert "Traceback" not in out + err


def run(*arguments: str, given: bytes = b"", env: Mapping[str, str] | None = None) -> Run:
    """Run the command as a process of its own, every warning an error, with *given* piped in."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "proxy", "keys", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **(env or {})},
        input=given,
        capture_output=True,
        timeout=20,
    )
    return Run(done.returncode, done.stdout.decode(), done.stderr.decode())


class Made:
    """What `keys new` printed: the *key*, and the TOML to paste."""

    def __init__(self, out: str) -> None:
        self.key, self.toml = out.split("\n", 1)

    @property
    def tables(self) -> dict[str, Any]:
        found: dict[str, Any] = tomllib.loads(self.toml)["keys"]
        return found


def new(capsys: pytest.CaptureFixture[str], *arguments: str) -> Made:
    """Make a key, in this process."""
    assert main(["keys", "new", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return Made(out)


@pytest.mark.parametrize("prefix", [None, "ah-", "AH_SMKRPA_", "", "a" * 32, "x.y_z-9"])
def test_form(prefix: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """A key is its prefix and 32 letters and digits, which stand nowhere else in what is printed."""
    options = [] if prefix is None else [f"--prefix={prefix}"]
    made = new(capsys, "mobile", *options)
    start = "tl-" if prefix is None else prefix
    assert made.key.startswith(start)
    assert re.fullmatch(r"[A-Za-z0-9]{32}", made.key.removeprefix(start))
    assert made.key not in made.toml
    assert made.tables == {"mobile": {"hash": "sha256:" + sha256(made.key.encode()).hexdigest()}}


def test_randomness(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two hundred keys no two begin or end alike, and each of 62 characters comes about as often."""
    keys = [new(capsys, "k", "--prefix", "").key for _ in range(200)]
    assert len({key[:8] for key in keys}) == len({key[-8:] for key in keys}) == 200
    for place in range(32):
        assert len({key[place] for key in keys}) > 30
    counts = Counter("".join(keys))
    assert set(counts) == set(ALPHABET)
    assert 50 < min(counts.values()) <= max(counts.values()) < 170  # 103 each, on average


NAMES = [
    "mobile", "team-1", "A_b", "1", "a.b", "two words", 'q"uote', "back\\slash", "é", "ключ", "😀",
    "[x]", "#", "a=b", "''", "-", "keys", "true",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the name, what is printed is TOML that passes the check, and says that name."""
    made = new(capsys, "--prefix", "ah-", "--", name)
    assert list(made.tables) == [name]
    file = tmp_path / "routes.toml"
    file.write_text(made.toml + ROUTES)
    found = load(file, {}).keys.find(made.key.encode())
    assert found is not None
    assert (found.name, found.models, found.expires) == (name, None, None)
    assert main(["check", str(file)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("name", ["", "a\nb", "\t", "\x7f", "a\x00", "\u2028"])
def test_bad_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that cannot be read is refused, and no key is made."""
    assert main(["keys", "new", "--", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_rights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The models and the last day that are asked for are in the TOML, and hold."""
    models = ["m", "qwen/*", 'a"\\b']
    made = new(capsys, "k", "--expires", "2027-06-30", "--models", *models)
    assert made.tables["k"]["models"] == models
    assert made.tables["k"]["expires"] == date(2027, 6, 30)
    file = tmp_path / "routes.toml"
    file.write_text(made.toml + ROUTES)
    key = load(file, {}).keys.find(made.key.encode())
    assert key is not None
    assert key.may_ask("qwen/x")
    assert not key.may_ask("other/x")
    assert key.expires == date(2027, 6, 30)


@pytest.mark.parametrize("model", ["", "a*b", "a\nb", "\x00", "**"])
def test_bad_models(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A model string that `check` would refuse is refused here, before a key is shown."""
    assert main(["keys", "new", "k", "--models", "m", model]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err


@pytest.mark.parametrize("day", ["soon", "2027-13-01", "2027-02-30", "30.06.2027", "", "2027-06"])
def test_bad_day(day: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A day that is none is refused, with the form that is wanted."""
    with pytest.raises(SystemExit) as left:
        main(["keys", "new", "k", "--expires", day])
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--expires" in err
    assert "YYYY-MM-DD" in err


@pytest.mark.parametrize("prefix", ["a b", "ü-", "a" * 33, "a\n", '"', "a/b", "$x", "\x00"])
def test_bad_prefix(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A prefix that a header, a URL or a shell could mistake is refused, and no key is made."""
    assert main(["keys", "new", "k", f"--prefix={prefix}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "prefix" in err


@pytest.mark.parametrize("arguments", [[], ["new"], ["old"], ["new", "a", "b"], ["hash", "x"]])
def test_misuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A verb that is incomplete, or says too much, is told how it is used; a key is never an argument."""
    with pytest.raises(SystemExit) as left:
        main(["keys", *arguments])
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: " in err


def test_new_as_a_process(tmp_path: Path) -> None:
    """What is printed for a shell is the key in a line of its own, and then the TOML."""
    done = run("new", "mobile", "--prefix", "ah-", "--expires", "2099-12-31")
    assert (done.status, done.err) == (0, "")
    made = Made(done.out)
    assert re.fullmatch(r"ah-[A-Za-z0-9]{32}", made.key)
    file = tmp_path / "routes.toml"
    file.write_text(ROUTES + made.toml)
    assert load(file, {}).keys.find(made.key.encode()) is not None


async def test_it_is_let_in(capsys: pytest.CaptureFixture[str]) -> None:
    """The key that was printed is let in where the TOML was pasted; no other one is, nor the hash."""
    made = new(capsys, "my app", "--prefix", "ah-", "--models", "m")
    other = new(capsys, "my app", "--prefix", "ah-")
    async with serving(made.toml + ROUTES) as proxy:
        for key, status in (
            (made.key, 200),
            (other.key, 401),
            (made.key[:-1], 401),
            (made.key + "a", 401),
            (made.key.swapcase(), 401),
            (made.tables["my app"]["hash"], 401),
        ):
            header = (b"Authorization", b"Bearer " + key.encode())
            got = await call(proxy.port, chat("m"), headers=[header])
            assert got.status == status, got.body
        record = (await proxy.record(6), proxy.records()[0])[1]
        assert (record["key"], record["outcome"]) == ("my app", "ok")
        got = await call(proxy.port, chat("other/x"), headers=[(b"x-api-key", made.key.encode())])
        assert (got.status, got.code) == (403, "model_not_allowed")
        assert made.key not in proxy.log.read_text()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (b"tk-0123456789\n", b"tk-0123456789"),
        (b"tk-0123456789", b"tk-0123456789"),
        (b"tk-0123456789\r\n", b"tk-0123456789"),
        (b"one\ntwo\n", b"one"),
        (b" inner space \n", b"inner space"),
        ("schlüssel\n".encode(), "schlüssel".encode()),
        (b"\xff\xfe\n", b"\xff\xfe"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_hash(given: bytes, key: bytes, encoding: str) -> None:
    """The hash of the line that is piped in is printed: of its bytes, whatever the terminal's encoding."""
    done = run("hash", given=given, env={"PYTHONIOENCODING": encoding})
    assert (done.status, done.err) == (0, "")
    assert done.out == f"sha256:{sha256(key).hexdigest()}\n"


@pytest.mark.parametrize("given", [b"", b"\n", b"\r\n", b"\nkey\n"])
def test_hash_of_nothing(given: bytes) -> None:
    """No key has no hash."""
    done = run("hash", given=given)
    assert (done.status, done.out) == (2, "")
    assert "no key" in done.err


def test_hash_is_of_the_key_that_was_made(tmp_path: Path) -> None:
    """`keys hash` says of a key what `keys new` wrote down, and the configuration takes it."""
    made = Made(run("new", "k").out)
    digest = run("hash", given=made.key.encode()).out.strip()
    assert digest == made.tables["k"]["hash"]
    file = tmp_path / "routes.toml"
    file.write_text(f'[keys.k]\nhash = "{digest}"\n{ROUTES}')
    assert load(file, {}).keys.find(made.key.encode()) is not None


@pytest.mark.parametrize("dressed", [b" %b\r\n", b"\xef\xbb\xbf%b\n", b"%b\t \n"])
def test_hash_of_what_a_file_holds(dressed: bytes) -> None:
    """`keys hash` leaves out what is left out wherever a secret is read."""
    key = b"tk-0123456789abcdef"
    assert run("hash", given=dressed % key).out == run("hash", given=key).out


def test_no_file_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is made where there is no `routes.toml`, or one that cannot be used."""
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "new", "k"]) == 0
    (tmp_path / "routes.toml").write_text("not = [toml")
    assert main(["keys", "new", "k"]) == 0
