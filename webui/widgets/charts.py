"""Lines over steps as SVG whose words are HTML, so that they keep their size at every width. Numbers in, HTML out."""

import math
from dataclasses import dataclass
from html import escape
from itertools import pairwise

MOST_POINTS = 400  # of a line: more than a screen shows


@dataclass(frozen=True)
class Line:
    """
    Attributes:
        points: (step, value), by step; values that are no numbers are left out.
        kind: raw, smooth or dots: its style.
    """

    name: str
    points: list[tuple[float, float]]
    kind: str = "smooth"


def chart(title: str, lines: list[Line], empty: str) -> str:
    """`empty` is what to say where there are no points yet."""
    lines = [Line(line.name, thinned(finite(line.points)), line.kind) for line in lines]
    points = [point for line in lines for point in line.points]
    if not points:
        caption = f"<figcaption>{escape(title)}</figcaption>"
        return f'<figure class="chart">{caption}<p class="empty">{escape(empty)}</p></figure>'
    low, high = value_range([value for _, value in points])
    right = max(1, *(step for step, _ in points))
    ticks = nice_ticks(low, high)
    drawn = "".join(drawn_line(line, right, low, high) for line in lines)
    grid = "".join(
        f'<line x1="0" x2="100" y1="{y(tick, low, high):.2f}" y2="{y(tick, low, high):.2f}"/>' for tick in ticks
    )
    words = "".join(f'<span style="top:{y(tick, low, high):.2f}%">{label}</span>' for tick, label in labelled(ticks))
    steps = "".join(
        f'<span style="left:{100 * tick / right:.2f}%">{short(tick)}</span>' for tick in nice_ticks(0, right)
    )
    legend = "".join(
        f'<span class="{line.kind}">{escape(line.name)} <b>{short(line.points[-1][1])}</b></span>'
        for line in lines
        if line.points
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<span class="legend">{legend}</span></figcaption>'
        f'<div class="plot"><div class="values">{words}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'<g class="grid">{grid}</g>{drawn}</svg><div class="steps">{steps}</div></div></figure>'
    )


def drawn_line(line: Line, right: float, low: float, high: float) -> str:
    places = [(100 * step / right, y(value, low, high)) for step, value in line.points]
    path = " ".join(f"{x:.2f},{height:.2f}" for x, height in places)
    if len(places) == 1 or line.kind == "dots":
        dots = "".join(f'<line class="dot" x1="{x:.2f}" x2="{x:.2f}" y1="{h:.2f}" y2="{h:.2f}"/>' for x, h in places)
        return f'<g class="{line.kind}"><polyline points="{path}"/>{dots}</g>'
    return f'<g class="{line.kind}"><polyline points="{path}"/></g>'


def y(value: float, low: float, high: float) -> float:
    """Height from the top, in percent; what lies outside is drawn at the edge."""
    return min(100.0, max(0.0, 100 * (high - value) / (high - low)))


def finite(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(step, value) for step, value in points if isinstance(value, int | float) and math.isfinite(value)]


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them, evenly, the last one among them."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return points[::-1][:: stride or 1][::-1]


def value_range(values: list[float]) -> tuple[float, float]:
    """Return the range from the least to the greatest but for the outermost hundredth, with some room."""
    ordered = sorted(values)
    cut = len(ordered) // 100
    low, high = ordered[cut], ordered[-1 - cut]
    room = (high - low) * 0.08 or abs(high) * 0.5 or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers in the range."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def labelled(ticks: list[float]) -> list[tuple[float, str]]:
    """Each with its number in as many digits as tell it from its neighbours."""
    distance = min((b - a for a, b in pairwise(ticks)), default=1.0)
    if max(map(abs, ticks), default=0.0) < 1e-2:
        return [(tick, short(tick)) for tick in ticks]
    digits = max(0, math.ceil(-math.log10(distance) - 1e-9))
    return [(tick, f"{tick:,.{digits}f}") for tick in ticks]


def short(number: float) -> str:
    """Three digits that count; small ones as 1e-4."""
    if number and abs(number) < 1e-3:
        mantissa, exponent = f"{number:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
