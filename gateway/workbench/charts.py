"""Line charts as SVG, drawn by hand: a plotting library is no dependency of a gateway."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10

WIDTH, HEIGHT = 640, 480
LEFT, RIGHT, TOP, BOTTOM = 64, 140, 36, 48
COLOURS = ("#0b6fa4", "#c4501b", "#3a8a3e", "#7a4fa3", "#8a6d1d")

Point = tuple[float, float]


class Axis:
    """An axis of a chart, linear or logarithmic.

    Args:
        low, high: ends, in the axis' unit.
        ticks: values that get a number.
        log: logarithmic; values below `low` stand at the end.
    """

    def __init__(
        self, title: str, low: float, high: float, ticks: Sequence[float], *, log: bool = False
    ) -> None:
        self.title, self.low, self.high, self.ticks, self.log = title, low, high, ticks, log

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return (value - self.low) / (self.high - self.low)


class Chart:
    """A picture with two axes; lines and points are in their units."""

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y
        self._legend = 0
        self._parts = [
            f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
            f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}"'
            f' height="{HEIGHT - TOP - BOTTOM}" fill="none" stroke="#888"/>',
        ]
        self._axes()

    def line(self, points: Sequence[Point], colour: str, name: str = "", dash: str = "") -> None:
        """Draw a line; with a name it is in the legend."""
        path = " ".join(f"{self._px(x):.1f},{self._py(y):.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>'
        )
        if name:
            y = TOP + 14 + 18 * self._legend
            x = WIDTH - RIGHT + 10
            self._legend += 1
            self._parts.append(
                f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}"'
                f' stroke-width="3"/><text x="{x + 24}" y="{y}">{escape(name)}</text>'
            )

    def cloud(self, points: Sequence[Point], colour: str) -> None:
        """Draw dots."""
        self._parts += [
            f'<circle cx="{self._px(x):.1f}" cy="{self._py(y):.1f}" r="1.6" fill="{colour}"'
            ' fill-opacity="0.35"/>'
            for x, y in points
        ]

    def svg(self) -> str:
        """The picture as SVG text."""
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            f' font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%"'
            f' fill="white"/>\n{body}\n</svg>\n'
        )

    def _px(self, value: float) -> float:
        return LEFT + self._x.share(value) * (WIDTH - LEFT - RIGHT)

    def _py(self, value: float) -> float:
        return HEIGHT - BOTTOM - self._y.share(value) * (HEIGHT - TOP - BOTTOM)

    def _axes(self) -> None:
        low, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for tick in self._x.ticks:
            x = self._px(tick)
            self._parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{low}" stroke="#e4e4e4"/>'
                f'<text x="{x:.1f}" y="{low + 16}" text-anchor="middle">{tick:g}</text>'
            )
        for tick in self._y.ticks:
            y = self._py(tick)
            self._parts.append(
                f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>'
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )
        middle = (TOP + low) / 2
        self._parts.append(
            f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
            f"{escape(self._x.title)}</text>"
            f'<text x="16" y="{middle}" text-anchor="middle"'
            f' transform="rotate(-90 16 {middle})">{escape(self._y.title)}</text>'
        )
