"""`python -m benchmarks`: the quick profile in three minutes; ``--full`` for all of it, ``--readthrough`` for the cache over a
database, ``--check`` against another revision."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import cases, check, measures, readthrough, report
from benchmarks.rivals import ASYNC, SYNC
from benchmarks.run import BLOCK, Bench, together


def profile(full: bool, rounds: int, block: float, console: Console) -> report.Results:
    """Run a profile with a progress bar."""
    results = report.Results("full" if full else "quick", rounds, block)
    groups = together(cases.full() if full else cases.quick())
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bench(rounds=rounds, block=block) as bench, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(groups) + 3)
        for group in groups:
            results.rows += bench.measure(group, lambda words: progress.update(task, description=words))
            progress.advance(task)
        progress.update(task, description="imports")
        results.imports = measures.imports(rounds)
        progress.advance(task)
        progress.update(task, description="memory of idle clients")
        results.idle = measures.idle_clients(bench, SYNC + ASYNC)
        progress.advance(task)
        progress.update(task, description="a thousand nodes")
        compiled, pure = SYNC[1:3]
        results.big = {compiled.name: measures.big_clusters(compiled), pure.name: measures.big_clusters(pure, clients=10)}
        progress.advance(task)
    order = list(cases.full())
    results.rows.sort(key=lambda row: order.index(row.case))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole matrix, about 40 minutes")
    parser.add_argument("--readthrough", action="store_true", help="what reading through the cache costs and spares, two minutes")
    parser.add_argument("--rounds", type=int, help="rounds in which each client runs a block (default 15; 7 with --full)")
    parser.add_argument("--no-save", action="store_true", help="leave docs/benchmarks as it is")
    parser.add_argument(
        "--check", metavar="REVISION", nargs="?", const="main", help="compare the working tree with a revision (main)"
    )
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    if options.check:
        print(check.compare(options.check, options.rounds or 15, console))
        return
    if options.readthrough:
        with console.status("") as status:
            found = readthrough.run(options.rounds or 15, status.update)
        print(readthrough.text(found))
        if not options.no_save:
            print("written:", ", ".join(readthrough.save(found)))
        return
    results = profile(options.full, options.rounds or (7 if options.full else 15), BLOCK, console)
    print(report.text(results))
    if not options.no_save:
        print("written:", ", ".join(report.save(results)))


if __name__ == "__main__":
    main()
