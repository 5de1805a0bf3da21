"""The clients that people really use: vendors' SDKs for Python and Node, and curl."""

import pytest

pytest.register_assert_rewrite("tests.clients.front")
