"""No message shows a value that could be a secret."""

import traceback
from pathlib import Path

import pytest

from proxy.config import ConfigError
from proxy.config.problems import dotted
from tests.config.files import FULL, Node, changed, file_of, nodes, read

CANARIES = [
    "CANARY",
    "CANARY value",
    "CANARY\nvalue",
    "CANARY\x00",
    "CANARY/x",
    "opneai/CANARY",
    "openai/CANARY*",
    "*CANARY*",
    "CANARY.example:80",
    "CANARY:80",
    "unix:CANARY\x00",
    "http://CANARY.example/v1?x",
    "http://CANARY.example/v1/chat/completions",
    "http://user:CANARY@h/v1",
    "http://h/CANARY /v1",
    "https://h:CANARY/v1",
    "sha256:CANARY",
    "/CANARY path",
    "30CANARY",
    "keysCANARY",
    "${CANARY}",
    "${CANARY",
]


@pytest.mark.parametrize("path", [p for p, v in nodes(FULL) if isinstance(v, str)], ids=dotted)
def test_no_message_shows_a_value(path: Node, tmp_path: Path) -> None:
    """Whatever is wrong with what a variable or a secret file holds, no message quotes a piece of it."""
    file = tmp_path / "value"
    file.write_text(CANARIES[0])
    cases = [("${VALUE}", {"VALUE": value}) for value in CANARIES]
    for text, env in [*cases, (f"${{file:{file}}}", {})]:
        try:
            read(file_of(changed(FULL, path, text)), env)
        except ConfigError as error:
            shown = "".join(traceback.format_exception(error)) + repr(error.problems)
            assert "canary" not in shown.lower(), (env, shown)
