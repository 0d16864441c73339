"""The ratios as a picture: a panel for each case of the quick profile, a bar for each client, the floor as a line.

The scale is logarithmic, because the ratios go from 0.1 to 100, and every bar says its figure.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import cases
from benchmarks.rivals import FLOOR
from benchmarks.run import Row

if TYPE_CHECKING:
    from benchmarks.report import Results

OWN, OWN_PURE, OTHERS, INK = "#0b6e4f", "#7fbfa6", "#b9bec4", "#333333"
COLUMNS = 3


def draw(results: Results, folder: Path) -> list[Path]:
    """Write ``<profile>.svg`` and ``<profile>.png``; their paths. Nothing where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("svg")
    import matplotlib.pyplot as plt

    from benchmarks.report import conditions

    quick = set(cases.quick())
    rows = [row for row in results.rows if row.case in quick and len(row.seconds) > 1]
    if not rows:
        return []
    lines = math.ceil(len(rows) / COLUMNS)
    # Text stays text, and no identifier or date is drawn by lot: the same figures give the same file.
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "kvcluster", "axes.titlesize": 10}):
        figure, panels = plt.subplots(lines, COLUMNS, figsize=(14, 2.5 * lines + 1.2), layout="constrained", squeeze=False)
        for panel, row in zip(panels.flat, rows, strict=False):
            _bars(panel, row)
        for panel in list(panels.flat)[len(rows) :]:
            panel.set_visible(False)
        figure.suptitle("Time of a call, as a multiple of the floor (left of the line is faster)", fontsize=13, color=INK)
        figure.supxlabel("\n".join(textwrap.fill(line, 170) for line in conditions(results)), fontsize=8, color=INK)
        paths = [folder / f"{results.profile}.svg", folder / f"{results.profile}.png"]
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=110)
        plt.close(figure)
    return paths


def _bars(panel: Any, row: Row) -> None:
    found = {name: ratio for name in row.seconds if name != row.base and (ratio := row.ratio(name, row.base)) is not None}
    names = sorted(found, key=lambda name: found[name], reverse=True)
    values = [found[name] for name in names]
    colours = [OWN if name == "kvcluster" else OWN_PURE if name.startswith("kvcluster") else OTHERS for name in names]
    # Bars start at the line, so that their length is how far they are from it.
    panel.barh(range(len(names)), [value - 1 for value in values], left=1, color=colours, height=0.72)
    panel.set_xscale("log")
    panel.set_xlim(min(0.5, *values) * 0.8, max(2.0, *values) * 2.4)
    panel.axvline(1, color=INK, linewidth=1)
    panel.set_yticks(range(len(names)), [f"{name}{'*' if name in row.loops else ''}" for name in names])
    for at, value in enumerate(values):
        panel.text(max(value, 1) * 1.06, at, f"{value:.2f}" if value < 10 else f"{value:.0f}", va="center", fontsize=8, color=INK)
    panel.set_title(f"{row.case}{'' if row.base == FLOOR else f' (line: {row.base})'}", loc="left", color=INK)
    panel.tick_params(axis="both", length=0, labelsize=8)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.xaxis.set_minor_formatter(lambda value, _: "")
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(False)
