"""The plugin as other projects meet it: by a pytest of its own, in a directory that knows nothing of this one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvcluster.testing import nodes
from kvcluster.testing.plugin import NodeFactory

pytest_plugins = ["pytester"]

binary_only = pytest.mark.skipif(nodes.find_memcached() is None, reason="no memcached binary here")

TWO_TESTS = """
    from pymemcache.client.base import Client
    seen = []

    def test_first(kv_nodes):
        one, two = kv_nodes(2)
        (three,) = kv_nodes()
        assert len({one.address, two.address, three.address}) == 3
        for node in (one, two, three):
            client = Client(node.address, default_noreply=False)
            client.set("key", "value")
            client.get("key")
            client.close()
        seen.extend([one.address, two.address, three.address])
        one.kill()
        two.pause()

    def test_second(kv_nodes):
        nodes = kv_nodes(3)
        assert {node.address for node in nodes} == set(seen)
        for node in nodes:
            client = Client(node.address, timeout=5, default_noreply=False)
            assert client.get("key") is None
            assert client.stats()[b"cmd_get"] == 1
            client.close()
"""


@pytest.mark.parametrize(
    ("kind", "summary"),
    [pytest.param("binary", r"memcached [\d.]+ \(binary\)", marks=binary_only), ("embedded", "embedded nodes")],
)
def test_nodes_are_handed_on_empty_and_mended(pytester: pytest.Pytester, kind: str, summary: str) -> None:
    pytester.makepyfile(**{"some/package/test_it": TWO_TESTS})
    result = pytester.runpytest_inprocess(f"--kv-nodes={kind}")
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines([f"kvcluster nodes: some/package ran on {summary}$"])


def test_the_summary_names_what_xdist_workers_ran_on(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(kv_nodes): kv_nodes(kind='embedded')")
    result = pytester.runpytest_subprocess("-n1")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines(["kvcluster nodes: . ran on embedded nodes$"])


@binary_only
def test_no_node_outlives_the_session(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from pathlib import Path

        def test_it(kv_nodes):
            running, paused = kv_nodes(2, kind="binary")
            paused.pause()
            Path("pids").write_text(f"{running.pid} {paused.pid}")
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    for pid in (pytester.path / "pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@binary_only
def test_options_start_nodes_of_their_own(kv_nodes: NodeFactory) -> None:
    (small,) = kv_nodes(memory=8, kind="binary", arguments=["-I", "2m"])
    (plain,) = kv_nodes(kind="binary")
    assert small.address != plain.address


def test_the_plugin_costs_other_projects_little() -> None:
    heavy = {"sqlalchemy", "rich", "typer", "docker", "testcontainers", "zstandard", "kvcluster.testing.nodes"}
    script = "import sys, kvcluster.testing.plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert not heavy.intersection(loaded)
