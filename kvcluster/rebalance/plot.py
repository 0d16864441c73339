"""The hit rate over requests as a picture: one curve for each scheme, the resize as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvcluster.errors import ConfigurationError, MissingExtra

if TYPE_CHECKING:
    from kvcluster.rebalance.simulate import Cost

FORMATS = (".svg", ".png")
INK = "#333333"
COLOURS = ("#b9bec4", "#d08c3f", "#4a78b5", "#0b6e4f", "#8e5ea2", "#a23b3b")


def check_plot(path: Path) -> None:
    """Raise now what `draw` would raise after a long simulation.

    :raises ConfigurationError: for a file that is neither SVG nor PNG, or whose folder does not exist
    :raises MissingExtra: without the extra ``plot``
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"plot {path}: the name must end with {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"plot {path}: there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("plot", "a plot") from error


def draw(costs: Sequence[Cost], path: Path, title: str, window: int) -> None:
    """Write the curves to an SVG or PNG file; the same costs give the same SVG.

    :param title: above the picture
    :param window: the requests of each rate in a `Cost`
    :raises ConfigurationError: see `check_plot`
    :raises MissingExtra: without the extra ``plot``
    """
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    svg = path.suffix.lower() == ".svg"
    # Text stays text, and no identifier or date is drawn by lot.
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "kvcluster"}):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        (FigureCanvasSVG if svg else FigureCanvasAgg)(figure)
        panel = figure.subplots()
        for at, cost in enumerate(costs):
            first = -len(cost.rates_before)
            points = [
                ((first + place) * window, 100 * rate)
                for place, rate in enumerate((*cost.rates_before, *cost.rates))
                if rate is not None
            ]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            panel.plot(xs, ys, label=cost.scheme, color=COLOURS[at % len(COLOURS)], linewidth=1.6, drawstyle="steps-post")
        panel.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        panel.set_title(title, loc="left", color=INK, fontsize=9)
        panel.set_xlabel(f"requests since the resize, in windows of {window:,}")
        panel.set_ylabel("hit rate, %")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.grid(axis="y", color="#e5e7ea", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        panel.legend(frameon=False, loc="lower right")
        figure.savefig(path, **({"metadata": {"Date": None}} if svg else {"dpi": 120}))
