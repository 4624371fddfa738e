"""Small SVG charts. Colours come from the page's style by class, so that they suit light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

_NUM_TICKS = 4
_CLOCK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_NUM_BINS = 24
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 30, 34  # margins, pixels


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of a chart."""

    name: str
    style: str  # class in page.css
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Frame:
    """A chart's size, the value at its top, and the range along its foot."""

    width: int
    height: int
    top: float
    first: float
    last: float

    def x(self, value: float) -> float:
        share = (value - self.first) / ((self.last - self.first) or 1.0)
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - value / (self.top or 1.0) * (self.height - _TOP - _BOTTOM)


def columns(
    series: Sequence[Series],
    edges: Sequence[float],
    *,
    size: tuple[int, int],
    x_label: str,
    y_label: str,
    tick: Callable[[float], str],
    ticks: Sequence[float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    label: str,
) -> str:
    """Stacked columns between edges.

    Args:
        series: from the foot up, a value for each pair of neighbouring edges.
        edges: ascending, of the columns.
        size: width and height, pixels.
        x_label: what lies along the foot, with its unit.
        y_label: what the columns count, with its unit.
        tick: writes a value of the foot.
        ticks: where; by default at round numbers.
        marks: vertical lines: place and name.
        label: the chart in words, for those who cannot see it.
    """
    sums = [sum(values) for values in zip(*(one.values for one in series), strict=True)]
    heights = nice_ticks(0.0, max(sums, default=0.0) or 1.0)
    frame = Frame(*size, heights[-1], edges[0], edges[-1])
    places = nice_ticks(edges[0], edges[-1]) if ticks is None else ticks
    body = [_y_axis(frame, heights), _x_axis(frame, places, tick, x_label), _text(0, 10, y_label, "label")]
    floor = [0.0] * len(sums)
    for one in series:
        for index, value in enumerate(one.values):
            if value:
                body.append(_column(frame, edges[index], edges[index + 1], floor[index], value, one, tick))
                floor[index] += value
    body += [_mark(frame, at, name, rank) for rank, (at, name) in enumerate(marks)]
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'
    )


def histogram(values: npt.NDArray[np.float64], *, size: tuple[int, int], x_label: str, y_label: str, label: str) -> str:
    """How often each value occurs, with median and 95th percentile; the largest half percent is in the last column."""
    last = float(np.quantile(values, 0.995))
    first = float(values.min())
    edges = _edges(first, max(last, first), is_whole=bool(np.all(values == np.round(values))))
    counts, _ = np.histogram(np.minimum(values, edges[-1]), bins=edges)
    marks = [(float(np.quantile(values, q)), name) for q, name in ((0.5, "median"), (0.95, "p95"))]
    return columns(
        [Series("rows", "ok", counts.tolist())],
        edges,
        size=size,
        x_label=x_label,
        y_label=y_label,
        tick=number,
        marks=[(min(at, edges[-1]), f"{name} {number(at)}") for at, name in marks],
        label=label,
    )


def bar(shares: Sequence[tuple[float, str]]) -> str:
    """A horizontal bar of shares of 1, each with a class, as wide as its place."""
    rects, left = [], 0.0
    for share, style in shares:
        rects.append(f'<rect class="{style}" x="{left * 100:.3f}" y="0" width="{share * 100:.3f}" height="10"/>')
        left += share
    return f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(rects)}</svg>'


def nice_ticks(first: float, last: float) -> list[float]:
    """Round numbers from at or below `first` to at or above `last`, about five."""
    step = _nice((last - first) / _NUM_TICKS)
    start, stop = math.floor(first / step), math.ceil(last / step - 1e-9)
    return [index * step for index in range(start, max(stop, start + 1) + 1)]


def clock_ticks(last_s: float) -> list[float]:
    """Round times from 0 to at most `last_s`, about six."""
    step_s = next((step for step in _CLOCK_STEPS_S if step * 6 >= last_s), math.ceil(last_s / 6 / 86400) * 86400)
    return [float(at_s) for at_s in range(0, int(last_s) + 1, step_s)]


def number(value: float) -> str:
    """A number for people, with as many digits as matter."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.3g} M"
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _nice(step: float) -> float:
    if step <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(step))
    return next(factor * size for factor in (1, 2, 5, 10) if factor * size >= step * (1 - 1e-9))


def _edges(first: float, last: float, is_whole: bool) -> list[float]:
    width = _nice((last - first) / _NUM_BINS)
    if is_whole:
        width = max(1.0, width)
    start = math.floor(first / width)
    stop = max(start + 1, math.floor(last / width) + 1)
    shift = 0.5 if is_whole else 0.0  # a whole number stands in the middle of its column
    return [index * width - shift for index in range(start, stop + 1)]


def _column(
    frame: Frame, start: float, stop: float, floor: float, value: float, series: Series, tick: Callable[[float], str]
) -> str:
    left, right = frame.x(start), frame.x(stop)
    gap = min(1.0, (right - left) * 0.15)
    top, foot = frame.y(floor + value), frame.y(floor)
    title = escape(f"from {tick(start)} to {tick(stop)}: {number(value)} {series.name}")
    return (
        f'<rect class="{series.style}" x="{left + gap / 2:.1f}" y="{top:.1f}" width="{right - left - gap:.1f}" '
        f'height="{max(foot - top, 0.5):.1f}"><title>{title}</title></rect>'
    )


def _y_axis(frame: Frame, ticks: Sequence[float]) -> str:
    lines = []
    for value in ticks:
        y = frame.y(value)
        style = "axis" if value == 0 else "grid"
        lines.append(f'<line class="{style}" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_text(_LEFT - 6, y + 4, number(value), "tick", "end"))
    return "".join(lines)


def _x_axis(frame: Frame, places: Sequence[float], tick: Callable[[float], str], label: str) -> str:
    ticks = [value for value in places if frame.first <= value <= frame.last]
    y = frame.height - _BOTTOM + 14
    right = frame.width - _RIGHT - 20  # a middle beyond it would be cut off
    anchors = ["middle" if frame.x(value) <= right else "end" for value in ticks]
    texts = [
        _text(frame.x(value), y, tick(value), "tick", anchor) for value, anchor in zip(ticks, anchors, strict=True)
    ]
    return "".join(texts) + _text(frame.width - _RIGHT, frame.height - 4, label, "label", "end")


def _mark(frame: Frame, at: float, name: str, rank: int) -> str:
    """A line with its name above the columns; neighbours' names stand in turn on two lines."""
    x, y = frame.x(at), _TOP - 4 - 12 * (rank % 2)
    is_right = x > frame.width * 0.8
    return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 2}" y2="{frame.height - _BOTTOM}"/>' + _text(
        x - 4 if is_right else x + 4, y, name, "tick", "end" if is_right else "start"
    )


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
