"""What the documentation shows is run: the quick start as a newcomer would paste it, and the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvcluster
from kvcluster import embedded

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(kvcluster.__path__, "kvcluster.")
    if not module.name.endswith(("__main__", "_native"))
)


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_the_quick_start_runs_as_pasted(name: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    command = [sys.executable, "-W", "error", "-c", blocks[0]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["loading 1", "{'id': 1, 'name': 'Seoul'} {'id': 1, 'name': 'Seoul'}"]
    assert "{'id': 1, 'name': 'Seoul, Korea'}" in lines


def test_the_shop_runs(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KVCLUSTER_URL"}
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "shop.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == "Profile(name='Kim', posts=1) Profile(name='Kim', posts=1)"
    assert lines[3] == "Profile(name='Kim', posts=2) ['Again', 'Hello']"
    assert lines[5] == "Profile(name='Kim Minji', posts=2) Kim Minji"


def test_both_languages_show_the_same_commands_and_figures() -> None:
    def shown(name: str) -> list[str]:
        text = (ROOT / name).read_text()
        table = text[text.index("make demo`") : text.index("HashClient`")]
        return re.findall(r"[\d,.]+\d", table)

    assert sorted(shown("README.md")) == sorted(shown("README.ko.md"))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name: str) -> None:
    embedded.register("default", None)  # of other examples
    assert doctest.testmod(importlib.import_module(name), extraglobs={"kvcluster": kvcluster}).failed == 0
