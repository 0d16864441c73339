from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvcluster.cli.app import run

Output = tuple[int, str, str]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Output]:
    """Runs one command line in a state directory of its own: exit code, standard output, standard error."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("KVCLUSTER_URL", raising=False)

    def call(*arguments: str) -> Output:
        code = run(arguments)
        return code, *capsys.readouterr()

    return call
