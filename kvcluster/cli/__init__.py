"""The command ``kvcluster``. It is an extra; without it, this says so."""

from __future__ import annotations

import sys

from kvcluster.errors import MissingExtra


def main() -> None:
    """Run the command line of this process and exit: 0 done, 1 a node is at fault, 2 the caller."""
    try:
        from kvcluster.cli.app import run
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        print(f"kvcluster: {MissingExtra('cli', 'the command kvcluster')}", file=sys.stderr)
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
