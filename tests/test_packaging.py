"""What is installed: the locks, the wheel, and the command in it."""

import ast
import importlib
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from proxy import __version__

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)

# The locks

LOCKS: dict[str, list[str]] = {
    "requirements.txt": PROJECT["dependencies"],
    "requirements-dev.txt": PROJECT["dependencies"]
    + [one for extra in EXTRAS.values() for one in extra],
    "requirements-build.txt": PYPROJECT["dependency-groups"]["build"],
}
"""What each lock is made from."""


def pins(text: str) -> dict[str, str]:
    """Return the version of each package that the lock *text* holds."""
    return {canonicalize_name(name): version for name, version in _PIN.findall(text)}


def unlocked(wanted: list[str], locked: dict[str, str]) -> Iterator[str]:
    """Yield what *wanted* needs here, extras and what they need included, and *locked* does not hold."""
    todo = [(Requirement(text), frozenset({""}), "pyproject.toml") for text in wanted]
    seen = set()
    while todo:
        need, extras, by = todo.pop()
        if need.marker is not None and not any(need.marker.evaluate({"extra": x}) for x in extras):
            continue
        name = canonicalize_name(need.name)
        if name not in locked or not need.specifier.contains(locked[name], prereleases=True):
            yield f"{by} needs {need}; locked is {locked.get(name)}"
            continue
        asked = (name, frozenset(need.extras))
        if asked in seen:
            continue
        seen.add(asked)
        try:
            requires = distribution(name).requires or ()
        except PackageNotFoundError:
            yield f"{by} needs {need}, which is not installed"
            continue
        todo += [(Requirement(text), asked[1] | {""}, name) for text in requires]


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_closed(lock: str) -> None:
    """A lock holds all that its packages need here, extras included: it is installed without a resolver,
    and `pip check` knows nothing of extras.
    """
    assert [*unlocked(LOCKS[lock], pins((ROOT / lock).read_text("utf-8")))] == []


def test_open_locks_are_seen() -> None:
    """What a package needs, what an extra of one needs, and a version that will not do are all missed."""
    locked = pins((ROOT / "requirements-dev.txt").read_text("utf-8"))
    wanted = LOCKS["requirements-dev.txt"]
    for gone, by in (("yarl", "aiohttp needs yarl"), ("requests", "google-auth needs requests")):
        told = [*unlocked(wanted, {name: pin for name, pin in locked.items() if name != gone})]
        assert any(line.startswith(by) for line in told), told
    told = [*unlocked(wanted, {**locked, "yarl": "0.1"})]
    assert any("locked is 0.1" in line for line in told)


@pytest.mark.parametrize("lock", [*LOCKS, "tests/clients/llama.txt"])
def test_lock_is_hashed(lock: str) -> None:
    """Every package of a lock is held by a hash."""
    text = (ROOT / lock).read_text("utf-8")
    for entry in re.split(r"\n(?=\S)", text.strip()):
        assert _PIN.match(entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("lock", ["requirements.txt", "requirements-dev.txt"])
def test_locks_agree(lock: str) -> None:
    """What builds this checkout is installed beside each lock: both name the same version of a package."""
    locked = pins((ROOT / lock).read_text("utf-8"))
    builds = pins((ROOT / "requirements-build.txt").read_text("utf-8"))
    assert {name: builds[name] for name in builds.keys() & locked.keys()} == {
        name: locked[name] for name in builds.keys() & locked.keys()
    }


# What is used of aiohttp's inside

PRIVATE = {
    "aiohttp.web_protocol": ("_ErrInfo",),
    "aiohttp.web_protocol:RequestHandler": (
        "_buffer_paused", "_close", "_current_request", "_force_close", "_handler_waiter", "_keepalive",
        "_keepalive_handle", "_loop", "_message_tail", "_messages", "_msg_queue_resume_size",
        "_next_keepalive_close_time", "_parser", "_process_keepalive", "_reading_paused",
        "_request_in_progress", "_resume_reading_if_drained", "_resume_transport_reading",
        "_task_handler", "_waiter",
    ),
    "aiohttp.streams:StreamReader": ("_buffer", "_wait"),
    "aiohttp_sse:EventSourceResponse": (
        "_abort_transport", "_prepare_headers", "_set_tcp_user_timeout",
    ),
}  # fmt: skip
"""The private names that are used, by where they stand. They are why aiohttp's next minor version is not
taken unseen: `<3.15`.
"""


def _place(where: str) -> object:
    module, _, name = where.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


@pytest.mark.parametrize(("where", "name"), [(k, name) for k, v in PRIVATE.items() for name in v])
def test_private_name(where: str, name: str) -> None:
    """A private name that is used is there; one that went is named by this test."""
    assert hasattr(_place(where), name), (
        f"{where} has no {name} in aiohttp {version('aiohttp')} with aiohttp-sse {version('aiohttp-sse')}"
    )


def test_private_names_are_listed() -> None:
    """What `edge` and `answers` use of aiohttp's inside is listed above."""
    known = {name for names in PRIVATE.values() for name in names}
    for file, classes in (
        ("client/edge.py", ("aiohttp.web_protocol:RequestHandler", "aiohttp.streams:StreamReader")),
        ("client/answers.py", ("aiohttp_sse:EventSourceResponse",)),
    ):
        tree = ast.parse((ROOT / "proxy" / file).read_text("utf-8"))
        nodes = [*ast.walk(tree)]
        own = {
            slot.value
            for node in nodes
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__"
            for slot in ast.walk(node.value)
            if isinstance(slot, ast.Constant)
        }
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used |= {
            method.name
            for node in nodes
            if isinstance(node, ast.ClassDef)
            for method in node.body
            if isinstance(method, ast.AsyncFunctionDef | ast.FunctionDef)
        }
        theirs = {
            name
            for name in used - own
            if name.startswith("_") and not name.startswith("__")
            if any(hasattr(_place(where), name) for where in classes)
        }
        assert theirs - known == set(), file


def test_bound() -> None:
    """aiohttp is taken from the version without known holes up to the next minor one."""
    wanted = next(text for text in PROJECT["dependencies"] if text.startswith("aiohttp>"))
    assert wanted == "aiohttp>=3.14.5,<3.15"


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without the network."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(directory.glob("*.whl"))


def test_wheel(wheel: Path) -> None:
    """The wheel holds the whole package, that it is typed, the pages, the vendors, the command and the
    licence; and nothing of the tests.
    """
    assert wheel.name == f"trunkline-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
        metadata = archive.read(f"trunkline-{__version__}.dist-info/METADATA").decode()
        commands = archive.read(f"trunkline-{__version__}.dist-info/entry_points.txt").decode()
    shipped = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "proxy").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"proxy/py.typed", "proxy/config/presets.toml", "proxy/pages/docs.html"} < shipped
    assert {name for name in names if ".dist-info/" not in name} == shipped | {"trunkline.py"}
    assert f"trunkline-{__version__}.dist-info/licenses/LICENSE" in names
    assert "trunkline = trunkline:main" in commands
    assert "Requires-Python: >=3.11" in metadata
    for minor in (11, 12, 13, 14):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}\n" in metadata


# The command

OTHER = 'raise SystemExit("a stranger was run")\n'


class Elsewhere:
    """An environment apart, with the wheel in it. What it depends on is this one's."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.directory = directory
        venv.create(directory, symlinks=True)
        packages = next((directory / "lib").glob("*/site-packages"))
        (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.pip("install", wheel)

    def pip(self, verb: str, what: Path | str) -> None:
        options = ["--no-index", "--no-deps"] if verb == "install" else ["--yes"]
        subprocess.run(
            [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python",
             str(self.directory), verb, *options, str(what)],
            check=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.directory / "bin/trunkline"), *arguments]
        return subprocess.run(command, env={}, capture_output=True, text=True, check=False)


def stranger(directory: Path) -> Path:
    """Make a wheel of another distribution that has a package `proxy` too."""
    file = directory / "stranger-1.0-py3-none-any.whl"
    info = "stranger-1.0.dist-info"
    contents = {
        "proxy/__init__.py": OTHER,
        "proxy/cli/__init__.py": OTHER,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*contents, f"{info}/RECORD"))
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in {**contents, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return file


@pytest.mark.timeout(300)
def test_overwritten(wheel: Path, tmp_path: Path) -> None:
    """Where another package has overwritten ours, the command says so, whose it is and what to do; nothing
    of it is run. Nor is there a traceback where ours went with the other.
    """
    elsewhere = Elsewhere(tmp_path / "venv", wheel)
    done = elsewhere.run("--version")
    assert (done.returncode, done.stdout) == (0, f"trunkline {__version__}\n"), done.stderr
    elsewhere.pip("install", stranger(tmp_path))
    done = elsewhere.run("--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "that of stranger" in done.stderr
    assert "proxy/__init__.py" in done.stderr
    assert "an environment of its own" in done.stderr
    elsewhere.pip("uninstall", "stranger")
    done = elsewhere.run("--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "is not there any more" in done.stderr


def test_checkout_is_installed() -> None:
    """`scripts/venv` leaves the command behind: this checkout's own."""
    command = Path(sys.executable).parent / "trunkline"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"trunkline {__version__}\n"), done.stderr


# Everywhere

WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")


def test_workflow() -> None:
    """Each Python that is promised is there when `.ci/run` is called; what others wrote is pinned."""
    promised = {
        text.rpartition(" ")[2]
        for text in PROJECT["classifiers"]
        if re.search(r":: \d\.\d+$", text)
    }
    looked_for = re.search(
        r"for version in ([\d. ]+);", (ROOT / "scripts/pythons").read_text("utf-8")
    )
    assert looked_for is not None
    assert promised == {*looked_for[1].split()}
    assert promised == {*re.findall(r"^ +(3\.\d+)$", WORKFLOW, re.MULTILINE)}
    assert re.search(r"^ +- run: .*\.ci/run$", WORKFLOW, re.MULTILINE)
    used = re.findall(r"uses: \S+@(\S+)", WORKFLOW)
    assert used
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in used)
