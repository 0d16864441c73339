"""What is installed here: the facts to give when something is reported."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib import metadata

from kvcluster.placement import _hot as placement_twin
from kvcluster.protocol import hot as protocol_twin
from kvcluster.testing.nodes import find_memcached
from kvcluster.transport import hot as transport_twin


def facts() -> dict[str, str]:
    """Names and values, in the order in which they are shown."""
    return {
        "kvcluster": metadata.version("kvcluster"),
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()} {platform.machine()})",
        "protocol": _twin(protocol_twin.COMPILED),
        "placement": _twin(placement_twin.COMPILED),
        "transport": _twin(transport_twin.COMPILED),
        "extras": ", ".join(name for name, present in extras().items() if present) or "none",
        "missing": ", ".join(name for name, present in extras().items() if not present) or "none",
        "memcached": _memcached(),
    }


def extras() -> dict[str, bool]:
    """Whether all that each extra asks for is installed; ``all`` is left out."""
    distribution = metadata.distribution("kvcluster")
    wanted: dict[str, list[str]] = {name: [] for name in distribution.metadata.get_all("Provides-Extra") or [] if name != "all"}
    for requirement in distribution.requires or []:
        name, _, marker = requirement.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra and extra[1] in wanted:
            wanted[extra[1]].append(re.match(r"[\w.-]+", name)[0])  # type: ignore[index]
    return {extra: all(map(_installed, names)) for extra, names in wanted.items()}


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _twin(compiled: bool) -> str:
    return "native" if compiled else "pure Python"


def _memcached() -> str:
    binary = find_memcached()
    if binary is None:
        return "not installed"
    version = subprocess.run([binary, "-V"], capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    return f"{version.removeprefix('memcached ')} ({binary})"
