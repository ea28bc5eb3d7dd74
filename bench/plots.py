"""The pictures of ``docs/benchmarks.md``: SVG that suits a light page and a dark one.

Matplotlib draws them. Text stays text, the background is transparent, and what is to be seen
against it has the colour ``_INK``, which becomes a CSS variable: dark, or light where the reader
prefers a dark page. The lines' colours have contrast enough on both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import Row

__all__ = ["Line", "draw_distributions", "draw_lines"]

_INK = "#010203"  # a colour that nothing else has
_COLOURS = ("#0a84d6", "#d9572b", "#2f9e58", "#9b6dd7", "#8a8a8a")
_STYLE = """<style>
:root { --ink: #1f2328 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3 } }
</style>
"""
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",  # the same figures give the same file
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=_COLOURS),
    "legend.frameon": False,
}


class Line(NamedTuple):
    """A line of a plot: the rows whose label has this form, each ``{}`` the number on the axis."""

    name: str
    form: str

    def points(self, rows: Sequence[Row]) -> list[tuple[int, Row]]:
        """Return the rows by their number.

        Raises:
            ValueError: there are none.
        """
        first, *rest = map(re.escape, self.form.split("{}"))
        pattern = rf"{first}(\d+)" + r"\1".join(rest)
        matches = ((re.fullmatch(pattern, row.what), row) for row in rows)
        found = [(int(match[1]), row) for match, row in matches if match]
        if not found:
            raise ValueError(f"no row is called {self.form!r}")
        return sorted(found, key=lambda point: point[0])


def draw_lines(path: Path, rows: Sequence[Row], lines: Sequence[Line], axis: str) -> None:
    """Draw medians against a number, with a faint band up to the p95; both axes logarithmic."""
    with matplotlib.rc_context(_RC):
        figure, axes = _axes()
        for line in lines:
            points = line.points(rows)
            numbers = [number for number, _ in points]
            medians = [row.p50 for _, row in points]
            (drawn,) = axes.plot(numbers, medians, marker="o", markersize=4, label=line.name)
            tops = [row.p95 for _, row in points]
            axes.fill_between(numbers, medians, tops, color=drawn.get_color(), alpha=0.12, lw=0)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel=points[0][1].unit)
        axes.set_xticks(numbers, map(str, numbers))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:,g}")
        _finish(figure, axes, path)


def draw_distributions(path: Path, rows: Mapping[str, Row], axis: str) -> None:
    """Draw for each row which share of its samples is not above a value."""
    with matplotlib.rc_context(_RC):
        figure, axes = _axes()
        for name, row in rows.items():
            axes.ecdf(row.samples, label=name)
        unit = next(iter(rows.values())).unit
        axes.set(xscale="log", xlabel=f"{axis}, {unit}", ylabel="share of the rounds")
        axes.xaxis.set_major_formatter("{x:,g}")
        _finish(figure, axes, path)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#8a8a8a", alpha=0.3, linewidth=0.6)
    return figure, axes


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    figure.savefig(path, transparent=True, metadata={"Date": None})
    drawing = path.read_text().replace(_INK, "var(--ink)")
    path.write_text(re.sub(r"(<svg\b[^>]*>\n)", rf"\1{_STYLE}", drawing, count=1))
