"""``python -m kvcluster.embedded --port N``: one embedded node on a TCP port, until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence

from kvcluster.embedded.node import EmbeddedNode
from kvcluster.embedded.server import serve


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kvcluster.embedded", description="A memcached-compatible node in pure Python.")
    parser.add_argument("--port", type=int, default=11211, help="TCP port; 0 chooses a free one and prints it (default: 11211)")
    parser.add_argument("--listen", default="127.0.0.1", metavar="HOST", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--memory", type=int, default=64, metavar="MB", help="memory for items in MiB (default: 64)")
    options = parser.parse_args(arguments)
    if options.memory < 1:
        parser.error("--memory must be at least 1")
    if not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")
    try:
        asyncio.run(_run(options.listen, options.port, EmbeddedNode(options.memory << 20)))
    except OSError as error:
        parser.exit(1, f"cannot listen on {options.listen}:{options.port}: {error}\n")


async def _run(host: str, port: int, node: EmbeddedNode) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = await serve(host, port, node)
    print(f"listening on {host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await stopped.wait()
    server.close()


if __name__ == "__main__":
    main()
