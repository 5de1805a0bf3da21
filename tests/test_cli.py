"""The command line, as the operator meets it: a process, its exit status, and what it says where."""

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from time import perf_counter, sleep

import pytest
import trustme

from proxy import __version__
from proxy.cli import main
from proxy.config.presets import load as load_presets
from tests.harness.client import call, chat
from tests.harness.proxy import process, serving
from tests.harness.upstream import Upstream

ROOT = Path(__file__).parents[1]

TOML = """
[server]
listen = "127.0.0.1:0"
[defaults]
timeout = { first_byte = "20s" }
[upstreams.corp]
base_url = "http://llm.corp.example:8000/v1"
credential = "${CORP_KEY:-ck-CANARY-0123456789}"
timeout = { idle = "7s" }
[routes]
alias = "big"
big = { upstream = "corp", model = "real", timeout = { total = "90s" } }
"gpt-*" = { upstream = "openai" }
[keys]
team = "tk-CANARY-0123456789"
"""
CHAINS = """
[upstreams.corp]
base_url = "http://llm.corp.example:8000/v1"
credential = ["${CORP_KEY:-ck-CANARY-0123456789}", "ck-CANARY-9876543210"]
[routes]
one = "corp/x"
two = { upstream = "corp", model = "big", fallback = "openai/gpt" }
half = { upstream = "openai", fallback = ["groq/x", "corp/y"] }
none = { targets = ["openai/a", "groq/b"], policy = "fastest" }
alias = "half"
"m-*" = { targets = ["corp/*", "one"], fallback = ["half", "groq/*"] }
"""
GOOD = '[routes]\nm = "sandbox/echo"\n'
BAD = '[server]\nlisen = 1\n[routes]\nm = "q0q0q0/x"\n'


def beside(path: Path) -> str:
    """Return a file that serves a unix socket at *path* beside the TCP port."""
    surface = f'[[surface]]\nname = "unix"\nlisten = "unix:{path}"\n'
    return f'[[surface]]\nname = "tcp"\n{surface}{GOOD}'


class Run:
    """What one run of the command left."""

    def __init__(self, status: int, out: str, err: str, seconds: float) -> None:
        self.status = status
        self.out = out
        self.err = err
        self.seconds = seconds
        assert "Traceback" not in out + err
        assert "CANARY" not in out + err


def run(directory: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Run:
    """Run the command as a process of its own, in *directory*, every warning an error."""
    started = perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "proxy", *arguments],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=20,
    )
    return Run(done.returncode, done.stdout, done.stderr, perf_counter() - started)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a good `routes.toml`."""
    (tmp_path / "routes.toml").write_text(TOML)
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(BAD)
    return tmp_path


@contextmanager
def ended(seconds: float) -> Iterator[None]:
    """Send this process SIGTERM after *seconds*: `serve` would go on for ever where it should refuse."""

    def overdue(*_: object) -> None:
        raise AssertionError(f"takes over {seconds} s")

    before = signal.signal(signal.SIGTERM, overdue)
    timer = Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGTERM, before)


Verb = Callable[..., Run]


@pytest.fixture
def verb(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run the command inside this process: as a process does, only sooner."""
    monkeypatch.chdir(here)
    for name in [name for name in os.environ if name.endswith("_KEY")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TRUNKLINE_CONFIG", raising=False)

    def call_main(*arguments: str) -> Run:
        started = perf_counter()
        try:
            with ended(5):
                status = main(arguments)
        except SystemExit as leaving:
            assert isinstance(leaving.code, int)
            status = leaving.code
        out, err = capsys.readouterr()
        return Run(status, out, err, perf_counter() - started)

    return call_main


# Usage


def test_version(here: Path) -> None:
    """`--version` says what this is."""
    done = run(here, "--version")
    assert (done.status, done.out, done.err) == (0, f"trunkline {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("--nonsense",),
        ("serve", "--nonsense"),
        ("serve", "extra"),
        ("check", "a", "b"),
        ("explain", "a", "b"),
        ("explain", "m", "--surface", "nowhere"),
        ("explain", "m", "-H", "no colon"),
        ("presets", "a", "b"),
        ("presets", "nowhere"),
        ("presets", "-c", "good.toml"),
        ("routes", "-c"),
    ],
)
def test_wrong_usage(verb: Verb, arguments: tuple[str, ...]) -> None:
    """Wrong usage is told on stderr, with exit status 2, and nothing is done."""
    done = verb(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert done.err != ""


def test_wrong_usage_of_a_process(here: Path) -> None:
    """The process's exit status for wrong usage is 2."""
    done = run(here, "serve", "--nonsense")
    assert done.status == 2
    assert "usage: trunkline" in done.err


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "-h"), ("explain", "--help")])
def test_help(verb: Verb, arguments: tuple[str, ...]) -> None:
    """Help goes to stdout, with exit status 0."""
    done = verb(*arguments)
    assert (done.status, done.err) == (0, "")
    assert "usage: trunkline" in done.out


# Which file


def test_check(here: Path) -> None:
    """A good file is said to be good, with its numbers; dormant routes are noted."""
    done = run(here, "check")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        'routes.toml: note: "gpt-*" is dormant: OPENAI_API_KEY is not set',
        "routes.toml: ok: 3 routes (1 dormant), 1 keys, 1 surfaces",
    ]


@pytest.mark.parametrize(
    ("names", "notes", "dormant"),
    [
        (
            (),
            [
                '"two" leaves out what needs OPENAI_API_KEY',
                '"half" leaves out what needs OPENAI_API_KEY',
                '"half" leaves out what needs GROQ_API_KEY',
                '"none" is dormant: OPENAI_API_KEY is not set',
                '"alias" leaves out what needs OPENAI_API_KEY',
                '"alias" leaves out what needs GROQ_API_KEY',
                '"m-*" leaves out what needs OPENAI_API_KEY',
                '"m-*" leaves out what needs GROQ_API_KEY',
            ],
            1,
        ),
        (
            ("OPENAI_API_KEY",),
            [
                '"half" leaves out what needs GROQ_API_KEY',
                '"none" leaves out what needs GROQ_API_KEY',
                '"alias" leaves out what needs GROQ_API_KEY',
                '"m-*" leaves out what needs GROQ_API_KEY',
            ],
            0,
        ),
        (("OPENAI_API_KEY", "GROQ_API_KEY"), [], 0),
    ],
)
def test_check_of_chains(
    here: Path,
    verb: Verb,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    notes: list[str],
    dormant: int,
) -> None:
    """A route is dormant when all its places are; of one that is not, what is left out is noted."""
    (here / "chains.toml").write_text(CHAINS)
    for name in names:
        monkeypatch.setenv(name, "sk-CANARY-0123456789")
    done = verb("check", "chains.toml")
    assert (done.status, done.err) == (0, "")
    assert "asks for no key" in done.out.splitlines()[0]
    assert done.out.splitlines()[1:] == [
        *(f"chains.toml: note: {note}" for note in notes),
        f"chains.toml: ok: 6 routes ({dormant} dormant), 0 keys, 1 surfaces",
    ]


def test_check_of_places_that_are_never_asked(here: Path, verb: Verb) -> None:
    """What stands in a chain and can never be asked is noted, with the reason; it hinders nobody."""
    (here / "never.toml").write_text(
        """
[server]
endpoints = ["chat/completions"]
[upstreams.a]
base_url = "http://a/v1"
[upstreams.b]
base_url = "http://b/v1"
speaks = ["messages"]
[routes]
m = { upstream = "a", model = "x", fallback = ["b/y", "a/z", "a/x", "other"] }
other = { targets = ["a/z", "a/w"], policy = "weighted" }
alias = "m"
fine = { targets = ["a/x", "a/y"], policy = "weighted", fallback = ["a/z"] }
"""
    )
    done = verb("check", "never.toml")
    assert done.status == 0
    notes = [
        line.split(": note: ")[1]
        for line in done.out.splitlines()
        if "never" in line.split(": ", 1)[1]
    ]
    assert notes == [
        'routes.m: "b/y" can never be asked: no surface has an endpoint that it speaks',
        'routes.m: "a/x" can never be asked: it stands further ahead already, and is asked once',
        'routes.m: "a/z" can never be asked: it stands further ahead already, and is asked once',
    ]
    (here / "through.toml").write_text(
        """
[server]
auth = "passthrough"
[upstreams]
a = { base_url = "http://a/v1", passthrough = true }
b = { base_url = "http://b/v1", passthrough = true }
[routes]
m = { upstream = "a", fallback = ["b/y"] }
"""
    )
    done = verb("check", "through.toml")
    assert '"b/y" can never be asked: callers\' own credentials go to the first place' in done.out


def test_check_of_bad_chains(here: Path, verb: Verb) -> None:
    """All that is wrong along a chain is told by its place, one line each."""
    (here / "chains.toml").write_text(
        """
[upstreams.corp]
base_url = "http://h/v1"
credential = ["ck-CANARY-1", "ck-CANARY-1"]
retry = { attempts = 11 }
[routes]
a = { upstream = "corp", fallback = ["corp/x", "q0q0q0/x"] }
b = { targets = [{ to = "corp/x", weight = -1 }, "corp/y"], policy = "wieghted" }
c = { upstream = "corp", fallback = "d" }
d = { upstream = "corp", fallback = "c" }
"""
    )
    done = verb("check", "chains.toml")
    assert (done.status, done.out) == (1, "")
    assert sorted(line.split(": ")[1] for line in done.err.splitlines()) == [
        "routes.a.fallback[1]",
        "routes.b.policy",
        "routes.b.targets[0].weight",
        "routes.c",
        "upstreams.corp.credential",
        "upstreams.corp.retry.attempts",
    ]


def test_check_of_a_bad_file(here: Path) -> None:
    """All problems of a bad file go to stderr, one line each, with exit status 1."""
    done = run(here, "check", "bad.toml")
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines() == [
        'bad.toml: server.lisen: unknown key; did you mean "listen"?',
        'bad.toml: routes.m: "q0q0q0/x" is neither a route nor `upstream/model`',
    ]


def test_config_of_the_environment(here: Path) -> None:
    """`TRUNKLINE_CONFIG` names the file where the command line does not."""
    done = run(here, "check", env={"TRUNKLINE_CONFIG": str(here / "good.toml")})
    assert f"\n{here}/good.toml: ok: 1 routes" in done.out


@pytest.mark.parametrize(
    ("variable", "arguments", "file"),
    [
        (None, ("check",), "routes.toml"),
        ("", ("check",), "routes.toml"),
        ("good.toml", ("check",), "good.toml"),
        ("bad.toml", ("check", "-c", "good.toml"), "good.toml"),
        ("bad.toml", ("check", "--config", "good.toml"), "good.toml"),
        ("bad.toml", ("check", "good.toml"), "good.toml"),
        (None, ("check", "-c", "bad.toml", "good.toml"), "good.toml"),
    ],
)
def test_which_file(
    verb: Verb,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    arguments: tuple[str, ...],
    file: str,
) -> None:
    """The argument goes before `-c`, that before `TRUNKLINE_CONFIG`, that before `routes.toml` here."""
    if variable is not None:
        monkeypatch.setenv("TRUNKLINE_CONFIG", variable)
    done = verb(*arguments)
    assert done.status == 0
    assert f"{file}: ok" in done.out


@pytest.mark.parametrize("name", ["check", "routes", "explain", "serve"])
@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("lost.toml", "no such file"),
        (".", "is a directory"),
        ("bad.toml", "q0q0q0/x"),
        ("junk.toml", "UTF-8"),
        ("words.toml", "line 1"),
    ],
)
def test_unusable_file(here: Path, verb: Verb, name: str, file: str, why: str) -> None:
    """Every verb says of a file that it cannot use what is wrong with it, and exits with 1."""
    (here / "junk.toml").write_bytes(b"\xff\xfe")
    (here / "words.toml").write_text("these are no tables")
    done = verb(name, *(["m"] if name == "explain" else []), "-c", file)
    assert (done.status, done.out) == (1, "")
    assert all(line.startswith(f"{file}: ") for line in done.err.splitlines())
    assert why in done.err


# explain and routes


def test_explain(here: Path) -> None:
    """What would happen to a request is said line by line, with exit status 0."""
    done = run(here, "explain", "alias")
    assert (done.status, done.err) == (0, "")
    lines = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in done.out.splitlines()]
    assert lines == [
        ["model", "alias"],
        ["surface", "main, auth keys"],
        ["path", "/v1/chat/completions, dialect chat"],
        ["route", '"alias" → big, exact name'],
        ["upstream model", "real"],
        ["upstream", "corp"],
        ["url", "POST http://llm.corp.example:8000/v1/chat/completions"],
        ["header", "Authorization: Bearer …6789  (from CORP_KEY)"],
        ["timeout", "connect 5 s  (built in)"],
        ["timeout", "first_byte 20 s  (defaults.timeout)"],
        ["timeout", "idle 7 s  (upstreams.corp.timeout)"],
        ["timeout", "write 60 s  (built in)"],
        ["timeout", "total 90 s  (routes.big.timeout)"],
        [
            "retry",
            "3 tries at a place, and no more in all that may be billed; nothing is begun after 600 s",
        ],
        ["cuts first", "first_byte: the answer must have begun 20 s after it was sent"],
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (("big", "--path", "/v1/messages"), 0, "llm.corp.example:8000/v1/messages"),
        (("big", "--path", "/v1/files"), 1, "404 not_found"),
        (("bigg",), 1, 'Did you mean "big"?'),
        (("gpt-4o",), 1, "OPENAI_API_KEY is not set"),
        (("big", "--surface", "main"), 0, "surface  main"),
        ((), 1, "400 invalid_model"),
        (("--path", "/v1/models"), 0, "answered here"),
        (("big", "--path", "/v1/audio/transcriptions"), 0, ":8000/v1/audio/transcriptions"),
        (("big", "--path", "/v1beta/models/big:generateContent"), 0, "/v1/models/real:generateContent"),
        (("big", "--path", "/v1/realtime?model=big"), 0, "/v1/realtime?model=real"),
        (("gpt-4o", "--path", "/v1/messages"), 1, "404 endpoint_not_supported"),
        (("--path", "/v1/models?upstream=corp"), 0, "llm.corp.example:8000/v1/models"),
        (("--path", "/v1/models?upstream=nowhere"), 1, "There is no such upstream"),
    ],
)  # fmt: skip
def test_explain_status(verb: Verb, arguments: tuple[str, ...], status: int, word: str) -> None:
    """What would be refused is explained too, and the exit status is 1."""
    done = verb("explain", *arguments)
    assert (done.status, done.err) == (status, "")
    assert word in done.out


@pytest.mark.parametrize(
    ("encoding", "model", "status"),
    [("ascii", "alias", 0), ("utf-8", os.fsdecode(b"m-\xff"), 1)],
)
def test_explain_on_any_terminal(here: Path, encoding: str, model: str, status: int) -> None:
    """A terminal that cannot show a character, and a model that is none, break nothing."""
    assert run(here, "explain", model, env={"PYTHONIOENCODING": encoding}).status == status


@pytest.mark.parametrize(
    "path", ["/v1beta/models/x:generateContent", "/v1/realtime", "/v1/messages"]
)
def test_explain_a_model_that_is_no_text(here: Path, verb: Verb, path: str) -> None:
    """A model that is not UTF-8 text breaks nothing where a URL would carry it either."""
    (here / "any.toml").write_text('[routes]\n"*" = { base_url = "http://h/v1" }\n')
    done = verb("explain", os.fsdecode(b"m-\xff"), "--path", path, "-c", "any.toml")
    assert done.status in (0, 1)
    assert "http://h/v1" in done.out or "400" in done.out


# presets


def test_presets(here: Path) -> None:
    """The table has a line a vendor, and says whether its variable is set, but not to what."""
    env = {
        "OPENAI_API_KEY": "sk-CANARY", "TOGETHERAI_API_KEY": "CANARY", "AZURE_API_KEY": "CANARY",
        "GROQ_API_KEY": "", "MISTRAL_API_KEY_FILE": "/nowhere/CANARY", "AWS_REGION": "CANARY-1",
        "VLLM_API_KEY": "CANARY",
    }  # fmt: skip
    done = run(here, "presets", env=env)
    assert (done.status, done.err) == (0, "")
    head, *lines = [re.split(r" {2,}", line) for line in done.out.splitlines()]
    assert head == ["PRESET", "BASE URL", "STATE"]
    assert all(len(line) == 3 for line in lines)
    states = {line[0]: line[2] for line in lines}
    assert list(states) == list(load_presets())
    for name, state in {
        "openai": "ready: OPENAI_API_KEY",
        "together": "ready: TOGETHERAI_API_KEY",
        "mistral": "ready: MISTRAL_API_KEY",
        "groq": "dormant: GROQ_API_KEY not set",
        "azure": "dormant: AZURE_RESOURCE_NAME not set",
        "bedrock": "dormant: AWS_BEARER_TOKEN_BEDROCK not set",
        "cloudflare": "dormant: CLOUDFLARE_ACCOUNT_ID, CLOUDFLARE_API_TOKEN not set",
        "vllm": "ready: VLLM_API_KEY",
        "ollama": "ready: needs no variable",
        "sandbox": "ready: needs no variable",
    }.items():
        assert states[name] == state


@pytest.mark.parametrize("name", sorted(load_presets()))
def test_preset(verb: Verb, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """All that is known of one vendor is shown: URLs, variables, and what of it is inferred."""
    preset = load_presets()[name]
    for variable in (*preset.env, *preset.vars.values()):
        monkeypatch.setenv(variable, "CANARY-0123456789")
    done = verb("presets", name)
    assert (done.status, done.err) == (0, "")
    lines = [line.strip().split("  ", 1) for line in done.out.splitlines()]
    labels = [label for label, _ in lines]
    texts = [text.strip() for _, text in lines]
    assert texts[0] == f"{name}: {preset.title}"
    assert texts[1].startswith("ready: ")
    assert [t for label, t in zip(labels, texts, strict=True) if label == "variable"] == preset.env
    assert labels.count("speaks") == len(preset.speaks or ())
    assert labels.count("var") == len(preset.vars)
    for field in preset.inferred:
        assert field in texts[-1]
    assert texts[-1].startswith(preset.checked)
    assert preset.docs in done.out


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("opnai", 'there is no preset "opnai"; did you mean "openai"?\n'),
        ("OpenAI", 'there is no preset "OpenAI"; did you mean "openai"?\n'),
        ("q0q0", 'there is no preset "q0q0"\n'),
        ("", 'there is no preset ""\n'),
    ],
)
def test_unknown_preset(verb: Verb, name: str, hint: str) -> None:
    """A vendor that nobody knows is answered with the nearest one, and exit status 2."""
    done = verb("presets", name)
    assert (done.status, done.out, done.err) == (2, "", hint)


def test_presets_need_no_file(tmp_path: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of vendors does not depend on a routes file, and none is read."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("TRUNKLINE_CONFIG", "lost.toml")
    for arguments in ((), ("openai",), ("--markdown",)):
        assert verb("presets", *arguments).status == 0


def test_routes(here: Path) -> None:
    """The table has a line a route, in the order of the file, and says which ones sleep."""
    done = run(here, "routes")
    assert (done.status, done.err) == (0, "")
    assert [re.split(r" {2,}", line) for line in done.out.splitlines()] == [
        ["ROUTE", "UPSTREAM", "MODEL SENT", "STATE"],
        ["alias", "corp", "real", "ready"],
        ["big", "corp", "real", "ready"],
        ["gpt-*", "openai", "as asked", "dormant: OPENAI_API_KEY is not set"],
    ]
    awake = run(here, "routes", env={"OPENAI_API_KEY": "sk-CANARY"})
    assert awake.out.splitlines()[3].endswith("ready")


def test_routes_of_chains(here: Path, verb: Verb) -> None:
    """Of a route with several places the first is shown, and how many there are more; it sleeps only
    where all of them do.
    """
    (here / "chains.toml").write_text(CHAINS)
    done = verb("routes", "-c", "chains.toml")
    assert (done.status, done.err) == (0, "")
    assert [re.split(r" {2,}", line) for line in done.out.splitlines()[1:]] == [
        ["one", "corp", "x", "ready"],
        ["two", "corp", "big", "ready, and 1 more place"],
        ["half", "openai", "as asked", "ready, and 2 more places"],
        ["none", "openai", "a", "dormant: OPENAI_API_KEY is not set, and 1 more place"],
        ["alias", "openai", "half", "ready, and 2 more places"],
        ["m-*", "corp", "*", "ready, and 5 more places"],
    ]


def test_explain_chains(here: Path, verb: Verb) -> None:
    """Every place of a chain is shown in its order; one that is ready is enough for status 0."""
    (here / "chains.toml").write_text(CHAINS)
    done = verb("explain", "alias", "-c", "chains.toml")
    assert (done.status, done.err) == (0, "")
    lines = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in done.out.splitlines()]
    told = [text for label, text in lines if label in ("place", "upstream", "upstream model")]
    assert told == ["1 of 3", "half", "openai", "2 of 3", "x", "groq", "3 of 3", "y", "corp"]
    assert verb("explain", "none", "-c", "chains.toml").status == 1


def test_reader_that_leaves(here: Path) -> None:
    """Who reads only the first line of the output causes no complaint (`trunkline routes | head -1`)."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "proxy", "routes"],
            cwd=here,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=20,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""


# health


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_health_of_a_process(workers: str) -> None:
    """`health` asks the process that serves the file: where it really listens, after a reload that was
    refused, with none of its variables, whatever the file holds by now, and while it leaves.
    """
    toml = f'[server]\nlame_duck = "20s"\n[upstreams.up]\nbase_url = "${{WHERE}}"\n{GOOD}'
    where = {"WHERE": "http://127.0.0.1:1/v1"}
    async with process(toml, where, further=("--workers", workers)) as proxy:
        ok = (0, f"127.0.0.1:{proxy.port}: ok\n", "")
        directory, name = proxy.file.parent, proxy.file.name
        done = run(directory, "health")
        assert (done.status, done.out, done.err) == ok
        assert (await proxy.reload(toml + "\noops\n"))["event"] == "reload_failed"
        done = run(Path("/"), "health", "-c", str(directory / "." / name))
        assert (done.status, done.out, done.err) == ok
        proxy.file.unlink()
        done = run(directory, "health", env={"TRUNKLINE_CONFIG": str(proxy.file)})
        assert (done.status, done.out, done.err) == ok
        proxy.tell(signal.SIGTERM)
        async with asyncio.timeout(15):
            while (done := run(directory, "health")).out == ok[1]:
                pass
        assert done.status == 0
        assert done.out.endswith(": leaving\n")
    done = run(Path("/"), "health", "-c", str(proxy.file))
    assert (done.status, done.out) == (2, "")
    assert "no process of this user serves it" in done.err


async def test_health_over_tls(tmp_path: Path) -> None:
    """A surface with TLS is no hindrance, neither asked by file nor by address."""
    authority = trustme.CA()
    (tmp_path / "tls.pem").write_bytes(
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
    )
    pem = tmp_path / "tls.pem"
    toml = f'[server]\ntls = {{ certificate = "{pem}", key = "{pem}" }}\n{GOOD}'
    async with process(toml) as proxy:
        done = run(tmp_path, "health", "-c", str(proxy.file))
        assert (done.status, done.out) == (0, f"127.0.0.1:{proxy.port}: ok\n")
        done = run(tmp_path, "health", "--listen", f"127.0.0.1:{proxy.port}")
        assert (done.status, done.out) == (0, f"127.0.0.1:{proxy.port}: ok\n")


async def test_health_of_one_of_two(tmp_path: Path) -> None:
    """`--listen` says which process is meant: not the one that serves the file and listens elsewhere."""
    async with process(GOOD) as proxy, process(GOOD) as other:
        for listen, status in ((proxy.port, 0), (other.port, 0), (1, 2)):
            asked = f"127.0.0.1:{listen}"
            done = run(tmp_path, "health", "-c", str(proxy.file), "--listen", asked)
            assert done.status == status, done
            assert (done.out or done.err).startswith(f"{asked}: ")


async def test_health_of_one_that_hangs(tmp_path: Path) -> None:
    """A process that is there and does not answer is not well."""
    async with process(GOOD) as proxy:
        proxy.tell(signal.SIGSTOP)
        try:
            done = run(tmp_path, "health", "-c", str(proxy.file))
        finally:
            proxy.tell(signal.SIGCONT)
        assert (done.status, done.out) == (1, "")
        assert "does not answer" in done.err


async def test_health_without_a_worker(tmp_path: Path) -> None:
    """Where the supervisor stands and no worker answers, it is not well."""
    async with process(GOOD, further=("--workers", "2"), check=False) as proxy:
        pids = [line["pid"] for line in proxy.events("worker_started")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            done = run(tmp_path, "health", "-c", str(proxy.file))
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert (done.status, done.err) == (1, f"{proxy.file}: no worker answers\n")
        done = run(tmp_path, "health", "-c", str(proxy.file))
        assert done.status == 0


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (None, "lost.toml: cannot be read: no such file"),
        ("[server\n", "is not TOML"),
        ("server = 1", "says no address"),
        ("surface = 1", "says no address"),
        ("surface = [1]", "says no address"),
        ("[server]\nlisten = 8080", "says no address"),
        ("[server]\nlisten = []", "says no address"),
        ('[server]\nlisten = "nonsense"', "says no address"),
        ('[server]\nlisten = "${NOT_SET}:1"', "says no address"),
        ('oops = 1\n[server]\nlisten = "127.0.0.1:${PORT:-1}"', "127.0.0.1:1: connection refused"),
        ('[[surface]]\nlisten = ["127.0.0.1:1"]\n', "127.0.0.1:1: connection refused"),
        ('[server]\nlisten = "unix:/nonexistent/x"', "unix:/nonexistent/x: no such file"),
    ],
)
def test_health_of_nobody(here: Path, verb: Verb, toml: str | None, told: str) -> None:
    """Where nobody serves the file, it says where to ask at most, whatever else is wrong with it."""
    if toml is not None:
        (here / "lost.toml").write_text(toml)
    done = verb("health", "-c", "lost.toml")
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert len(done.err.splitlines()) == 1


def test_health_of_no_address(here: Path, verb: Verb) -> None:
    """What is no address is wrong usage."""
    done = verb("health", "--listen", "nonsense")
    assert (done.status, done.out) == (2, "")
    assert "--listen must be" in done.err


async def test_health_of_a_unix_socket(here: Path) -> None:
    """A proxy on a unix socket is asked there, where it serves another file."""
    path = here / "x.sock"
    (here / "unix.toml").write_text(f'[server]\nlisten = "unix:{path}"\n{GOOD}')
    done = run(here, "health", "-c", "unix.toml")
    assert done.status == 2
    assert "no such file" in done.err
    async with process(beside(path)):
        done = run(here, "health", "-c", "unix.toml")
        assert (done.status, done.out) == (0, f"unix:{path}: ok\n")


def _everywhere() -> list[str]:
    """Return the addresses that stand for all of this machine's, IPv6 where it has that."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return ["0.0.0.0:{}"]
    return ["0.0.0.0:{}", "[::]:{}"]


@pytest.mark.parametrize("listen", _everywhere())
async def test_health_of_everywhere(here: Path, listen: str) -> None:
    """A proxy that listens everywhere is asked on the loopback."""
    toml = f"[server]\nopen = true\n{GOOD}"
    async with process(toml, listen=listen.format(0)) as proxy:
        (here / "open.toml").write_text(toml)
        done = run(here, "health", "-c", "open.toml", "--listen", listen.format(proxy.port))
        assert (done.status, done.err) == (0, "")


@contextmanager
def impostor(answer: bytes) -> Iterator[int]:
    """Something else that listens, and answers *answer* to whoever comes."""
    code = (
        "import socket, sys\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept()\n"
        f"c.recv(9999); c.sendall({answer!r}); c.close()\n"
    )
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        yield int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"hello\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 503 No\r\nContent-Length: 15\r\n\r\n{"status":"ok"}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_health_of_something_else(here: Path, verb: Verb, answer: bytes) -> None:
    """Whatever answers otherwise than a healthy proxy is not one."""
    with impostor(answer) as port:
        done = verb("health", "-c", "good.toml", "--listen", f"127.0.0.1:{port}")
    assert (done.status, done.out) == (1, "")
    assert "not a healthy trunkline" in done.err


# serve: what it is given


async def test_serve_listens_elsewhere(tmp_path: Path) -> None:
    """`serve --listen` takes the place of the file's address, and the log's first line says where."""
    toml = f'[server]\nlisten = "203.0.113.1:1"\nopen = true\n{GOOD}'
    async with process(toml, listen="127.0.0.1:0") as proxy:
        assert (await call(proxy.port, chat())).status == 200
        ready = proxy.lines()[0]
        assert ready["event"] == "ready"
        assert ready["listen"] == [f"127.0.0.1:{proxy.port}"]


async def test_env_file(tmp_path: Path, upstream: Upstream) -> None:
    """`--env-file` gives variables, quoted or not; the process's own go before them."""
    (tmp_path / "env").write_text(
        "# comment\n\nexport MINE='sk-from-the-file'\nOTHER = \"sk-other=x\" \nPLAIN=a b\nBOTH=lost\n"
    )
    (tmp_path / "routes.toml").write_text(
        '[server]\nlisten = "127.0.0.1:0"\n'
        f'[upstreams.up]\nbase_url = "{upstream.url}"\ncredential = "${{MINE}}"\n'
        'headers = { x-other = "${OTHER}", x-plain = "${PLAIN}", x-both = "${BOTH}" }\n'
        '[routes]\nm = "up/x"\n'
    )
    with served(tmp_path, "--env-file", "env", env={"BOTH": "kept"}) as port:
        assert (await call(port, chat())).status == 200
    request = upstream.requests[0]
    names = (b"authorization", b"x-other", b"x-plain", b"x-both")
    assert [request.value(name) for name in names] == [
        b"Bearer sk-from-the-file",
        b"sk-other=x",
        b"a b",
        b"kept",
    ]


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
def test_env_file_with_a_mark(here: Path, verb: Verb, before: bytes) -> None:
    """What an editor on Windows puts before the first variable is no part of its name."""
    (here / "env").write_bytes(before + b"WHERE=openai/x \r\nB=c\r\n")
    (here / "marked.toml").write_text('[routes]\nm = "${WHERE}"\n')
    done = verb("check", "marked.toml", "--env-file", "env")
    assert (done.status, done.err) == (0, "")


async def test_welcome(tmp_path: Path) -> None:
    """`--welcome` prints two commands that work on the shipped file, and which model strings do."""
    (tmp_path / "routes.toml").write_bytes((ROOT / "routes.toml").read_bytes())
    env = {"GROQ_API_KEY": "gk-CANARY-0123456789"}
    said: list[str] = []
    with served(tmp_path, "--welcome", "--listen", "127.0.0.1:0", env=env, said=said) as port:
        commands = [shlex.split(line) for line in said if line.strip().startswith("curl")]
        assert len(commands) == 2
        for command in commands:
            url = next(word for word in command if word.startswith("http://"))
            path = url.removeprefix(f"http://127.0.0.1:{port}")
            name, _, value = command[command.index("-H") + 1].partition(": ")
            got = await call(
                port,
                command[command.index("-d") + 1].encode(),
                path,
                [(name.encode(), value.encode())],
            )
            assert got.status == 200
            kind = got.value(b"content-type") or b""
            assert kind.startswith(b"text/event-stream") == ("-sN" in command)
    text = "".join(said)
    assert "CANARY" not in text
    assert re.search(r"groq/\*.*GROQ_API_KEY", text)
    assert re.search(r"OPENAI_API_KEY.*openai/\*", text)


@contextmanager
def served(
    directory: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    said: list[str] | None = None,
) -> Iterator[int]:
    """Serve what is in *directory*, as an operator would; yield the port, and fill *said* with what
    stdout holds before the first line of the log.
    """
    child = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "proxy", "serve", *arguments],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            match = re.search(r'"listen":\["127\.0\.0\.1:(\d+)"\]', line)
            if match is not None:
                yield int(match[1])
                break
            (said if said is not None else []).append(line)
    finally:
        child.terminate()
        _, err = child.communicate(timeout=15)
    assert (child.returncode, err) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["routes"],
        ["explain", "m"],
        ["presets", "corp"],
        ["health"],
        ["keys", "new", "x"],
        ["bench", "--url", "http://127.0.0.1:1/v1", "--model", "m"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_env_file_of_every_verb(here: Path, verb: Verb, arguments: list[str]) -> None:
    """Every verb takes `--env-file`, and sees what it says."""
    (here / "env").write_text("CORP_KEY=sk-CANARY-0123456789\nOPENAI_API_KEY=sk-CANARY\n")
    (here / "routes.toml").write_text(
        '[server]\nlisten = "127.0.0.1:1"\n[upstreams.corp]\nbase_url = "http://127.0.0.1:1/v1"\n'
        'credential = "${CORP_KEY}"\n[routes]\nm = "corp/x"\ngpt = "openai/x"\n'
    )
    if arguments[0] == "presets":
        arguments = ["presets", "openai"]
    done = verb(*arguments, "--env-file", "env")
    said = done.out + done.err
    assert "CANARY" not in said
    assert "CORP_KEY is not set" not in said
    wanted = {
        "check": "(0 dormant)",
        "routes": "ready",
        "explain": "CORP_KEY",
        "presets": "ready: OPENAI_API_KEY",
        "health": "127.0.0.1:1: connection refused",
        "keys": "[keys.x]",
        "bench": "requests to http://127.0.0.1:1/v1",
    }
    assert wanted[arguments[0]] in said.lower() or wanted[arguments[0]] in said
    lost = verb(*arguments, "--env-file", "lost")
    if arguments[0] in ("check", "routes", "explain", "presets", "bench", "health"):
        assert "lost cannot be read" in lost.err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "env cannot be read: no such file or directory"),
        (b"\xff", "env cannot be read: it is not UTF-8 text"),
        (b"A=1\nCANARY\n", "env:2 is not NAME=VALUE"),
        (b"A=1\n\n=CANARY\n", "env:3 is not NAME=VALUE"),
        (b"A B=CANARY\n", "env:1 is not NAME=VALUE"),
    ],
)
def test_bad_env_file(here: Path, verb: Verb, content: bytes | None, why: str) -> None:
    """A file of variables that cannot be read is told by name and line, and not quoted."""
    if content is not None:
        (here / "env").write_bytes(content)
    done = verb("serve", "--env-file", "env")
    assert (done.status, done.out, done.err) == (1, "", f"trunkline: {why}\n")


# Where nobody reads what is printed, or there is no room for it

PRINTING = [
    ("--version",),
    ("--help",),
    ("check",),
    ("explain", "big"),
    ("routes",),
    ("presets",),
    ("presets", "openai"),
    ("presets", "--markdown"),
    ("keys", "new", "team"),
    ("keys", "hash"),
    ("bench", "--url", "http://127.0.0.1:9/v1", "--model", "m"),
]


def piped_to(here: Path, verb: tuple[str, ...], sink: str) -> Run:
    """Run the command with its stdout going into *sink*, as a shell writes it."""
    python = [sys.executable, "-X", "dev", "-W", "error", "-m", "proxy"]
    line = f"{shlex.join([*python, *verb])} {sink}; exit ${{PIPESTATUS[0]}}"
    started = perf_counter()
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=here,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        input="some-key-0123456789\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Run(done.returncode, done.stdout, done.stderr, perf_counter() - started)


@pytest.mark.parametrize("verb", PRINTING, ids=" ".join)
def test_no_room_for_what_is_printed(here: Path, verb: tuple[str, ...]) -> None:
    """A disk that is full ends a verb with a sentence and status 1, without a traceback."""
    done = piped_to(here, verb, "> /dev/full")
    said = "trunkline: the output cannot be written: no space left on device\n"
    assert (done.status, done.err) == (1, said)


@pytest.mark.parametrize("verb", PRINTING, ids=" ".join)
def test_nobody_reads_what_is_printed(here: Path, verb: tuple[str, ...]) -> None:
    """A reader that has left ends a verb without a word, and a closed stdout, stdin or stderr does no harm."""
    done = piped_to(here, verb, "| true")
    assert "Exception" not in done.err
    if verb[0] != "bench":
        assert done.err == ""
        assert piped_to(here, verb, ">&- <&- 2>&-").status in (0, 2)  # 2: there is no key to hash


def test_welcome_without_room(here: Path) -> None:
    """Where there is no room for the welcome, nor for the log, the proxy serves all the same."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    python = [sys.executable, "-X", "dev", "-W", "error", "-m", "proxy"]
    with Path("/dev/full").open("wb") as full:
        child = subprocess.Popen(
            [*python, "serve", "--welcome", "-c", "good.toml", "--listen", f"127.0.0.1:{port}"],
            cwd=here,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        over = perf_counter() + 20
        while perf_counter() < over:
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as client:
                    client.sendall(
                        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    )
                    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
                break
            except ConnectionRefusedError:
                assert child.poll() is None
        sleep(0.2)  # for the log to be written
    finally:
        child.terminate()
        _, said = child.communicate(timeout=20)
    assert child.returncode == 0
    assert said.count("trunkline: ") == 1
    assert "the log cannot be written: no space left on device" in said


# serve: what it cannot do


def refused(done: Run, *words: str) -> None:
    """Assert one clear line on stderr, soon, and exit status 1."""
    assert (done.status, done.out) == (1, "")
    assert len(done.err.splitlines()) == 1, done.err
    assert all(word in done.err for word in words), done.err
    assert done.seconds < 5


def test_port_taken(here: Path) -> None:
    """A port that is taken is told in one line, at once."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        refused(run(here, "serve", "--listen", address), address, "in use")


def test_unusable_file_is_not_served(here: Path) -> None:
    """A file that is not there is told in one line, at once."""
    refused(run(here, "serve", "-c", "lost.toml"), "lost.toml: cannot be read: no such file")


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _huge(file: Path) -> None:
    file.touch()
    os.truncate(file, 2 * 2**30)


@pytest.mark.parametrize("name", ["check", "serve", "routes", "explain"])
@pytest.mark.parametrize(
    ("make", "why"),
    [(_pipe, "is a named pipe"), (_endless, "is a device"), (_huge, "is larger than 16 MiB")],
)
def test_no_regular_file(here: Path, make: Callable[[Path], None], why: str, name: str) -> None:
    """What may never begin or never end is not read as a routes file; a sentence says so, at once."""
    make(here / "odd.toml")
    refused(run(here, name, "-c", "odd.toml"), f"odd.toml: cannot be read: {why}")


def test_without_the_c_parser(here: Path) -> None:
    """Where aiohttp has lost its C parser, which its own does not replace, nothing is served."""
    refused(run(here, "serve", env={"AIOHTTP_NO_EXTENSIONS": "1"}), "C parser")


def _privileged() -> list[str]:
    """Return an address that this user may not listen on, if there is one: for root there is none."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 1))
        except PermissionError:
            return ["127.0.0.1:1"]
        except OSError:
            return []
    return []


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.1:8080",
        "[2001:db8::1]:8080",
        "no-such-host.invalid:8080",
        f"{'a' * 70}.example:80",
        "a..b:80",
        *_privileged(),
    ],
)
def test_impossible_addresses(here: Path, verb: Verb, address: str) -> None:
    """An address that is not ours, or that no name stands for, is told in one line with the reason."""
    (here / "open.toml").write_text(f"[server]\nopen = true\n{GOOD}")
    done = verb("serve", "-c", "open.toml", "--listen", address)
    refused(done, f"trunkline: cannot listen on {address}: ")
    assert "errno" not in done.err.lower()


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:99999", "", "unix:"])
def test_bad_addresses(verb: Verb, listen: str) -> None:
    """What is no address at all is told like any mistake in the file."""
    refused(verb("serve", "--listen", listen), "server.listen", "HOST:PORT")


def test_exposed_address(verb: Verb) -> None:
    """The command line does not open a proxy without keys to the world."""
    refused(verb("serve", "-c", "good.toml", "--listen", "0.0.0.0:0"), "open = true")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no/such/directory/x.sock", "no such file"),
        ("good.toml", "file exists"),
        (".", "file exists"),
        ("x" * 120, "too long"),
        ("good.toml/x.sock", "not a directory"),
    ],
)
def test_impossible_sockets(here: Path, verb: Verb, path: str, why: str) -> None:
    """A unix socket that cannot be made is told in one line, and what is in its way stays there."""
    done = verb("serve", "-c", "good.toml", "--listen", f"unix:{here}/{path}")
    refused(done, "trunkline: cannot listen on unix:", why)
    assert (here / "good.toml").read_text() == GOOD


def test_second_surface_taken(here: Path, verb: Verb) -> None:
    """Where one of several surfaces cannot listen, none does."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        (here / "two.toml").write_text(
            f'[[surface]]\nname = "a"\nlisten = "unix:{here}/a.sock"\n'
            f'[[surface]]\nname = "b"\nlisten = "127.0.0.1:{taken}"\n{GOOD}'
        )
        refused(verb("serve", "-c", "two.toml"), f"127.0.0.1:{taken}")
    assert not (here / "a.sock").exists()


# Unix sockets


def ask(path: Path) -> bytes:
    """Return the status line of what answers at a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return client.recv(65536).split(b"\r\n")[0]


async def test_socket_of_a_live_proxy(here: Path) -> None:
    """The socket of a proxy that lives is not taken from it: the second refuses, the first goes on."""
    path = here / "x.sock"
    async with process(beside(path)):
        assert path.stat().st_mode & 0o777 == 0o600
        refused(run(here, "serve", "-c", "good.toml", "--listen", f"unix:{path}"), "in use")
        assert ask(path) == b"HTTP/1.1 200 OK"
    assert not path.exists()


def test_socket_of_another_program(here: Path, verb: Verb) -> None:
    """Nor is a socket taken from any other program that listens on it."""
    path = here / "x.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        refused(verb("serve", "-c", "good.toml", "--listen", f"unix:{path}"), "in use")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


async def test_stale_socket(here: Path) -> None:
    """A socket that a dead process has left is taken over, and only its owner may use it."""
    path = here / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    path.chmod(0o777)
    async with process(beside(path)):
        assert path.stat().st_mode & 0o777 == 0o600
        assert ask(path) == b"HTTP/1.1 200 OK"


async def test_killed_proxy_leaves_its_socket(here: Path) -> None:
    """After a proxy was killed, the next one starts at the same socket."""
    path = here / "x.sock"
    async with process(beside(path), check=False) as proxy:
        assert proxy.process is not None
        proxy.process.kill()
        await proxy.process.wait()
    assert path.exists()
    async with process(beside(path)):
        assert ask(path) == b"HTTP/1.1 200 OK"


async def test_several_surfaces(here: Path) -> None:
    """TCP and unix sockets are served side by side, each with its own rules."""
    path = here / "x.sock"
    toml = f"""
[[surface]]
name = "tcp"
auth = "keys"
[[surface]]
name = "unix"
listen = "unix:{path}"
auth = "none"
[keys]
k = "key"
{GOOD}
"""
    async with serving(toml) as proxy:
        assert (await call(proxy.port, chat())).status == 401
        assert proxy.running is not None
        assert [str(a) for a in proxy.running.addresses["unix"]] == [f"unix:{path}"]
        assert path.is_socket()
    assert not path.exists()
