"""Files that stand beside `routes.toml`."""

from pathlib import Path

import pytest
import trustme

from tests.config.files import SECRET_FILE


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one certificate."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET_FILE}\n")
    return file
