"""What a user gets who installs kvcluster on a machine without a compiler, and without extras."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE = """
import kvcluster
from kvcluster.placement import _hot as placement, placement as bind
from kvcluster.protocol import hot as protocol
assert not protocol.COMPILED and not placement.COMPILED
assert bind("slots", ["a", "b"]).owner("key").address
client = kvcluster.Client.from_url("memory://")
client.set("key", {"name": "value"})
assert client.get("key") == {"name": "value"}
client.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_a_compiler_the_pure_twins_are_installed(tmp_path: Path) -> None:
    # A copy, because a build leaves files beside its sources, and must find none of an earlier one.
    source = tmp_path / "source"
    leftovers = shutil.ignore_patterns("*.so", "_native.c", "__pycache__")
    shutil.copytree(ROOT / "kvcluster", source / "kvcluster", ignore=leftovers)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    broken = os.environ | {"CC": "/bin/false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pins = ("-c", ROOT / "tests" / "requirements.txt")

    run(python, "-m", "pip", "install", "--quiet", *pins, source, env=broken)
    installed = next((tmp_path / "env" / "lib").glob("python*/site-packages/kvcluster"))
    assert list(installed.rglob("_native.*so")) == []
    assert (installed / "py.typed").exists()
    run(python, "-W", "error", "-c", USE, cwd=tmp_path)

    command = subprocess.run([tmp_path / "env" / "bin" / "kvcluster"], capture_output=True, text=True, timeout=60)
    assert (command.returncode, command.stdout) == (2, "")
    assert command.stderr == "kvcluster: the command kvcluster needs an optional dependency: pip install 'kvcluster[cli]'\n"


def run(*command: str | Path, **options: object) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout


def test_this_environment_has_the_compiled_twins() -> None:
    """Else every test of them would pass by testing the pure ones."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no compiler here")
    script = "from kvcluster.placement import _hot as a; from kvcluster.protocol import hot as b; print(a.COMPILED, b.COMPILED)"
    environment = {name: value for name, value in os.environ.items() if name != "KVCLUSTER_PURE"}
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert shown.stdout == "True True\n"
