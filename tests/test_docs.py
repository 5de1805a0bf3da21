"""What the documentation shows works: every TOML block of it is a file that `check` passes, and every
`trunkline` line does what it says.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from proxy.config import ConfigError, load
from proxy.errors import KINDS, Kind
from tests import written

ROOT = Path(__file__).parents[1]
MISTAKE = "<!-- a mistake -->"
_FENCE = re.compile(
    r"^(?P<mark><!-- a mistake -->[ \t]*\n(?:[ \t]*\n)*)?"
    r"(?P<indent>[ \t]*)(?P<fence>```+|~~~+)[ \t]*toml\b[^\n]*\n"
    r"(?P<text>.*?)^[ \t]*(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_VARIABLE = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FILE = re.compile(r"(?<!\$)\$\{file:([^}]*)\}")
_CA = re.compile(r'^(\s*ca\s*=\s*)"[^"]*"', re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A TOML block in *file*, beginning in *line*; a *mistake* is one that must be refused."""

    file: Path
    line: int
    text: str
    mistake: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return the pages of the documentation that there are."""
    return [
        page
        for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
        if page.exists()
    ]


def blocks(page: Path, content: str) -> Iterator[Block]:
    """Yield the TOML blocks of *page*, which holds *content*."""
    for match in _FENCE.finditer(content):
        line = content.count("\n", 0, match.start("fence")) + 1
        indent = match["indent"]
        text = "".join(row.removeprefix(indent) for row in match["text"].splitlines(keepends=True))
        yield Block(page, line, text, match["mark"] is not None)


BLOCKS = [block for page in pages() for block in blocks(page, page.read_text("utf-8"))]
EXAMPLES = sorted((ROOT / "docs").rglob("*.toml"))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of certificates, to stand where a page names one."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


def problems(text: str, directory: Path, ca: Path) -> str:
    """Load *text* with a value for each variable and file that it names; return what is wrong with it."""
    secret = directory / "secret"
    secret.write_text("a-secret-out-of-a-file\n")
    text = _FILE.sub(f"${{file:{secret}}}", _CA.sub(rf'\1"{ca}"', text))
    env = {name: f"value-of-{name}" for name in _VARIABLE.findall(text)}
    file = directory / "routes.toml"
    file.write_text(text)
    try:
        load(file, env)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block(block: Block, tmp_path: Path, ca: Path) -> None:
    """A block passes the check as it stands; one that is shown as a mistake does not."""
    told = problems(block.text, tmp_path, ca)
    if block.mistake:
        assert told != "", f"{block} is shown as a mistake, and is none"
    else:
        assert told == "", f"{block}:\n{told}"


@pytest.mark.parametrize("file", [ROOT / "routes.toml", *EXAMPLES], ids=lambda f: f.name)
def test_file(file: Path, tmp_path: Path, ca: Path) -> None:
    """Every routes file that is shipped passes the check."""
    assert problems(file.read_text("utf-8"), tmp_path, ca) == ""


def test_shipped_file_needs_nothing() -> None:
    """The shipped `routes.toml` works with no variable set: `default` leads to the sandbox."""
    route = load(ROOT / "routes.toml", {}).routes.match("default")
    assert route is not None
    assert (route.first.upstream.name, route.first.upstream.missing) == ("sandbox", None)


def test_there_are_blocks() -> None:
    """The README shows a routes file, and no TOML in the documentation is overlooked."""
    if (ROOT / "README.md").exists():
        assert any(block.file.name == "README.md" and not block.mistake for block in BLOCKS)
    for page in pages():
        content = page.read_text("utf-8")
        found = [block for block in BLOCKS if block.file == page]
        fences = re.findall(r"^[ \t>*-]*(?:```+|~~~+)[ \t]*\{?\.?toml\b", content, re.MULTILINE)
        assert len(found) == len(fences), page
        assert content.count(MISTAKE) == sum(block.mistake for block in found), page


PAGE = """
```toml
a = 1
```

<!-- a mistake -->

```toml
b = 2
```
text
- item
  ~~~toml
  c = 3
    d = 4
  ~~~
```sh
e = 5
```
"""


def test_blocks_are_found() -> None:
    """A block is what stands between fences of TOML, wherever on a page, and a comment marks a mistake."""
    found = list(blocks(ROOT / "x.md", PAGE))
    assert [(block.line, block.text, block.mistake) for block in found] == [
        (2, "a = 1\n", False),
        (8, "b = 2\n", True),
        (13, "c = 3\n  d = 4\n", False),
    ]


def test_blocks_are_read(tmp_path: Path, ca: Path) -> None:
    """A block with a mistake in it does not pass, and one that names variables and files does."""
    good = '[upstreams.openai]\nca = "/x"\ncredential = "${A}"\n[keys]\nk = "${file:/x}"\n'
    routes = '[routes]\nm = "openai/x"\n'
    assert problems(good + routes, tmp_path, ca) == ""
    assert "unknown key" in problems("x = 1\n" + good + routes, tmp_path, ca)


# Command lines

_CODE = re.compile(r"^[ \t]*```(?:sh|console)\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]*\btrunkline [^`\n]*)`")
_SYNOPSIS = re.compile(r"…|\[|\b[A-Z]{2,}\b(?!_)")
ENV = {
    "ANTHROPIC_API_KEY": "sk-ant-0123456789abcdef",
    "GPU_KEY": "sk-gpu-0123456789abcdef",
    "OPENAI_API_KEY": "sk-0123456789abcdef",
    "OLD_KEY": "sk-old-0123456789abcdef",
    "TEAM_KEY": "sk-team-0123456789abcdef",
}
"""What an operator has set who does what the pages say."""


def commands(content: str) -> Iterator[str]:
    """Yield the command lines with `trunkline` in *content*: those of code, after the prompt where there is
    one, and those in the text that are no mere synopsis.
    """
    for block in _CODE.findall(content):
        prompted = re.findall(r"^\s*\$ (.*)$", block, re.MULTILINE)
        for line in prompted or block.splitlines():
            if re.search(r"(?:^|\| )trunkline ", line):
                yield line.partition(" #")[0].strip()
    for code in _INLINE.findall(content):
        line = code.replace(r"\|", "|")
        if not _SYNOPSIS.search(re.sub(r"\$[A-Z_]+", "", line)):
            yield line


COMMANDS = sorted(
    {line for page in (*pages(), *EXAMPLES) for line in commands(page.read_text("utf-8"))}
)


def _isolated() -> tuple[str, ...]:
    """Return what runs a command in a network of its own, nothing where that cannot be had."""
    for unshare in (("unshare", "--net", "--mount"), ("unshare", "--net", "--mount", "-r")):
        try:
            done = subprocess.run([*unshare, "true"], capture_output=True, check=False)
        except OSError:
            return ()
        if done.returncode == 0:
            return unshare
    return ()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("line", COMMANDS)
def test_command(line: str, tmp_path: Path) -> None:
    """A line that a page prints runs as it is printed, in a directory with README's own file: what serves
    is asked, what asks is answered.
    """
    isolated = _isolated()
    if not isolated:
        pytest.skip("there are no namespaces to be had here (unshare)")
    assert (Path(sys.executable).parent / "trunkline").exists(), "scripts/venv has not installed it"
    readme = next(block for block in BLOCKS if block.file.name == "README.md")
    (tmp_path / "routes.toml").write_text(readme.text)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    done = subprocess.run(
        [*isolated, sys.executable, "-m", "tests.printed", line],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **ENV},
        input=ENV["OLD_KEY"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_commands_are_found() -> None:
    """Each verb is shown somewhere, and what is only a synopsis is not taken for a command."""
    verbs = {line.split("trunkline ")[1].split()[0] for line in COMMANDS}
    assert verbs == {"bench", "check", "explain", "health", "keys", "presets", "routes", "serve"}
    assert [*commands("`trunkline a B` `trunkline keys new NAME [-x]` `x \\| trunkline y`")] == [
        "trunkline a B",
        "x | trunkline y",
    ]
    assert [*commands("```console\n$ trunkline a  # b\ntrunkline said\n```\n")] == ["trunkline a"]


# Where pages lead, and their words

_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
BESIDE = [
    ROOT / name for name in ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
]


@pytest.mark.parametrize("page", [*pages(), *BESIDE], ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """What a page links to is there."""
    links = _LINK.findall(page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_reached() -> None:
    """Who reads the README finds each page."""
    readme = {
        (ROOT / link).resolve() for link in _LINK.findall((ROOT / "README.md").read_text("utf-8"))
    }
    assert {*pages(), *BESIDE} - {ROOT / "README.md"} <= readme


# Tables that are written from the program


@pytest.mark.parametrize("name", written.PAGES)
def test_written(name: str) -> None:
    """A table that is made from the program is up to date."""
    page = (ROOT / "docs" / name).read_text("utf-8")
    assert page == written.renewed(page, written.PAGES[name]()), "not up to date: scripts/docs"


def test_new_error() -> None:
    """A new kind of error has a row on the page by that alone, under its status; the rest stays as it is."""
    new = Kind(
        418, "invalid_request_error", "teapot", "refused", "caller", "body", "It is.", "Wait."
    )
    page = (ROOT / "docs/errors.md").read_text("utf-8")
    row = "| 418 | `teapot` | the caller's | It is. | Wait. |  |\n"
    grown = written.renewed(page, written.of_errors((*KINDS, new)))
    assert grown.replace(row, "") == page
    assert grown.partition(row)[2].startswith("| 426 |")


def test_error_notes() -> None:
    """What more is said about errors is about some that there are."""
    more = (ROOT / "docs/errors.md").read_text("utf-8").partition("## More about some")[2]
    cells = re.findall(r"^\| (`.*?`) \|", more, re.MULTILINE)
    codes = [code for cell in cells for code in re.findall(r"`(\w+)`", cell)]
    assert len(codes) == len({*codes}) > 20
    assert {*codes} <= {kind.code for kind in KINDS}


def test_glossary() -> None:
    """The glossary has thirty words at most, each one once."""
    words = re.findall(
        r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE
    )
    assert 20 < len(words) == len({*words}) <= 30


def test_scripts_are_told() -> None:
    """Contributors are told of each script, but for the two that only other scripts call."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    told = {*re.findall(r"^\| `(scripts/\w+|\.ci/run)` \|", page, re.MULTILINE)}
    called = {"scripts/pythons", "scripts/venv"}
    there = {f"scripts/{file.name}" for file in (ROOT / "scripts").iterdir()} | {".ci/run"}
    assert told == there - called
