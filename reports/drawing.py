"""What every figure is drawn with: colours, a legend that fits, and PNG and SVG of the same bytes every time.

Matplotlib is imported on use and drawn through Figure objects, which render with Agg and keep no global
state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Okabe and Ito's colours, then Tol's, which the colour-blind can tell apart
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00",
    "#882255", "#332288", "#44AA99", "#AA4499",
)  # fmt: skip
MARKERS = "osD^vP*X"
LEGEND_COLUMNS, LEGEND_LINES = 3, 3  # lines for which a figure has room as it is
LEGEND_LINE = 0.17  # inches


class Drawing(NamedTuple):
    """One figure in two file formats."""

    png: bytes
    svg: bytes


def style_of(place: int) -> dict[str, str]:
    """Colour and marker of the row at `place`, no two alike among 96."""
    return {"color": COLORS[place % len(COLORS)], "marker": MARKERS[(place + place // len(COLORS)) % len(MARKERS)]}


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """A legend under the panels, in as many columns as fit into the figure, which grows by what is many lines."""
    renderer = _renderer(figure)
    for columns in range(LEGEND_COLUMNS, 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
        _as_written(legend)  # before it is measured
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            break
        legend.remove()
    lines = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, lines - LEGEND_LINES))


def text_width(texts: Sequence[str]) -> float:
    """Inches that the longest of `texts` takes at the common font size."""
    from matplotlib.figure import Figure

    figure = Figure()
    renderer = _renderer(figure)
    drawn = [figure.text(0, 0, text, parse_math=False) for text in texts]
    return max((text.get_window_extent(renderer).width for text in drawn), default=0.0) / figure.dpi


def drawing_of(figure: Figure) -> Drawing:
    """The figure as PNG and as SVG with text as text, the same bytes every time."""
    import matplotlib

    for legend in filter(None, (axes.get_legend() for axes in figure.axes)):
        _as_written(legend)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=130, metadata={"Software": None})
    figure.set_layout_engine("none")  # everything stays where the PNG has it, and is not laid out again
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "boltzbench"}):
        figure.savefig(svg, format="svg", dpi=130, metadata={"Date": None, "Creator": None})
    return Drawing(png.getvalue(), svg.getvalue())


def _as_written(legend: Legend) -> None:
    """Names of methods are data: a dollar sign in one is no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _renderer(figure: Figure) -> RendererAgg:
    """What measures texts before the figure is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure).get_renderer()
