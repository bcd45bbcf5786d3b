"""Figures of many methods with long names: nothing is cut off, and the panels keep their size."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from reports.drawing import drawing_of, legend_below, text_width
from reports.figures import critical_difference
from reports.significance import Ranking


def names(count: int) -> list[str]:
    return [f"BoltzFormer, pigma query ensemble only {number}+Hiera-XT" for number in range(count)]


def ink_at_the_edges(png: bytes) -> int:
    """Pixels that are not white in the outermost column on the left and on the right."""
    gray = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return int((gray[:, [0, -1]] < 250).sum())


def figure_with_legend(count: int, width: float = 7.2) -> tuple[Figure, bytes]:
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    axes = figure.add_subplot()
    lines = [axes.plot([0, 1], [0, number])[0] for number in range(count)]
    legend_below(figure, lines, names(count))
    return figure, drawing_of(figure).png


@pytest.mark.parametrize("count", [1, 3, 21])
@pytest.mark.parametrize("width", [4.0, 7.2, 9.6])
def test_a_legend_is_never_cut_off(count, width):
    _, png = figure_with_legend(count, width)
    assert ink_at_the_edges(png) == 0


def test_a_long_legend_takes_nothing_from_the_panel():
    few, many = (figure_with_legend(count)[0].axes[0].get_window_extent().height for count in (5, 41))
    assert many > 0.95 * few


def test_a_formula_in_a_name_is_drawn_as_it_is_written():
    figure = Figure(layout="constrained")
    line = figure.add_subplot().plot([0, 1])[0]
    legend_below(figure, [line], [r"$\frac$"])
    assert r"$\frac$" in drawing_of(figure).svg.decode()
    assert text_width([r"$\frac$", "a"]) > text_width(["a"]) > 0


def test_mean_ranks_of_many_methods_have_room_between_their_names():
    pairs = np.where(np.abs(np.subtract.outer(range(21), range(21))) < 4, 0.5, 0.01)
    order = Ranking(np.arange(21), np.linspace(6.9, 12.3, 21), 0.01, pairs, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib only warns when the axes have no room left
        drawing = critical_difference(order, names(21), False)
    assert ink_at_the_edges(drawing.png) == 0
    svg = drawing.svg.decode()
    assert "(12.0)" in svg and "(12.3)" in svg, "ranks that differ are not rounded to one number"
