"""`api.py` is right by mypy --strict, and each of its wrong lines is found to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api


@pytest.mark.slow
def test_users_types(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    found, complaints, status = api.run(
        [
            *("--strict", "--warn-unused-ignores", "--config-file", ""),
            "--follow-imports=silent",  # as for what is installed
            *("--cache-dir", str(pytestconfig.cache.mkdir("mypy"))),
            str(Path(__file__).with_name("api.py")),
        ]
    )
    assert (found, complaints, status) == ("Success: no issues found in 1 source file\n", "", 0)
