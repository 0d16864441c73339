"""The tree of errors: what leaves a process arrives whole in another, and nothing of a node's own text reaches a log raw."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from kvcluster import errors

ARGUMENTS: dict[type, tuple[Any, ...]] = {
    errors.MissingExtra: ("sql", "a repository"),
    errors.ResizeLocked: ("host:1:abc", 1_800_000_000.0),
    errors.DeleteFailed: (["a", b"b"], {"h:1": errors.NodeTimeout("h:1", "no answer")}),
}


def tree(root: type[errors.KvclusterError]) -> Iterator[type[errors.KvclusterError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from tree(kind)


@pytest.mark.parametrize("kind", dict.fromkeys(tree(errors.KvclusterError)))
@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_every_error_survives_the_way_to_another_process(kind: Any, carry: Any) -> None:
    of_a_node = issubclass(kind, errors.NodeError | errors.NetworkError)
    error = kind(*ARGUMENTS.get(kind, ("h:1", "what happened") if of_a_node else ("what happened",)))
    copied = carry(error)
    assert type(copied) is kind
    assert (str(copied), copied.args, copied.node) == (str(error), error.args, error.node)
    assert repr(copied.__dict__) == repr(error.__dict__)


def test_a_nodes_own_words_are_escaped_and_short() -> None:
    text = str(errors.CommandRefused("h:1", "SERVER_ERROR x\n2026-01-01 root login \x1b[2J" + "y" * 5000))
    assert text.isprintable()
    assert len(text) < 300
