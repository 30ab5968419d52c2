"""Small inline SVG charts for the report: text that a browser scales, no script."""
from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 40
COLOURS = {"mean reward": "#9a6700", "imagined success, training": "#7a8fa6", "imagined success, held-out": "#0b6e4f"}


def learning_curve(series: dict[str, Sequence[tuple[float, float]]]) -> str:
    """Draw named series of (update, value in 0..1 or a little more) as one SVG with axes, points and a legend."""
    points = [p for values in series.values() for p in values]
    if not points:
        return "<p class='quiet'>No update was made.</p>"
    last, top = max(1.0, max(x for x, _ in points)), max(1.0, max(y for _, y in points))

    def at(x: float, y: float) -> tuple[float, float]:
        return (LEFT + x / last * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM))

    parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='learning curve'>"]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = at(0, tick)
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' class='grid'/>"
                     f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{tick:g}</text>")
    step = max(1, round(last / 8))
    for update in range(0, int(last) + 1, step):
        x, _ = at(update, 0)
        parts.append(f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>{update}</text>")
    parts.append(f"<text x='{(WIDTH + LEFT) / 2}' y='{HEIGHT - 6}' text-anchor='middle'>update</text>")
    for name, values in series.items():
        colour = COLOURS.get(name, "#444")
        spots = [at(x, y) for x, y in values]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.2' fill='{colour}'/>" for x, y in spots]
    legend = "".join(f"<span><i style='background:{COLOURS.get(name, '#444')}'></i>{escape(name)}</span>"
                     for name, values in series.items() if values)
    return "".join(parts) + f"</svg><p class='legend'>{legend}</p>"


def interval_bar(low: float, value: float, high: float, colour: str) -> str:
    """Draw a proportion 0..1 with its interval on a 0..1 scale."""
    x = [4 + 192 * min(1.0, max(0.0, v)) for v in (low, value, high)]
    return (f"<svg viewBox='0 0 200 16' class='interval' role='img' aria-label='{value:.2f}'>"
            f"<line x1='4' x2='196' y1='8' y2='8' class='grid'/>"
            f"<line x1='{x[0]:.1f}' x2='{x[2]:.1f}' y1='8' y2='8' stroke='{colour}' stroke-width='5' opacity='.45'/>"
            f"<circle cx='{x[1]:.1f}' cy='8' r='5' fill='{colour}'/></svg>")


def share_bar(parts: Sequence[tuple[str, float]]) -> str:
    """Draw named non-negative amounts as one bar of shares with a legend."""
    colours = ("#0b6e4f", "#7a8fa6", "#9a6700", "#b3541e", "#5b4b8a", "#444")
    total = sum(v for _, v in parts) or 1.0
    x, rects, legend = 0.0, [], []
    for i, (name, value) in enumerate(parts):
        width, colour = 640 * value / total, colours[i % len(colours)]
        rects.append(f"<rect x='{x:.1f}' y='0' width='{width:.1f}' height='18' fill='{colour}'/>")
        legend.append(f"<span><i style='background:{colour}'></i>{escape(name)} {value:.1f} s</span>")
        x += width
    return (f"<svg viewBox='0 0 640 18' preserveAspectRatio='none' class='share' role='img' aria-label='time by stage'>"
            f"{''.join(rects)}</svg><p class='legend'>{''.join(legend)}</p>")


def curve(points: Sequence[tuple[float, float]], x_name: str, y_name: str, sizes: Sequence[float] = (),
          diagonal: bool = True) -> str:
    """Draw points of the unit square as a line; `sizes` (0..1) draws a spot of that area at each instead."""
    side, edge = 300, 44

    def at(x: float, y: float) -> str:
        return f"{edge + x * side:.1f},{12 + (1 - y) * side:.1f}"

    parts = [f"<svg viewBox='0 0 {edge + side + 16} {side + 56}' role='img' aria-label='{escape(y_name)}'>"]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = edge + tick * side, 12 + (1 - tick) * side
        parts.append(f"<line x1='{edge}' x2='{edge + side}' y1='{y:.1f}' y2='{y:.1f}' class='grid'/>"
                     f"<text x='{edge - 6}' y='{y + 4:.1f}' text-anchor='end'>{tick:g}</text>"
                     f"<text x='{x:.1f}' y='{side + 28}' text-anchor='middle'>{tick:g}</text>")
    if diagonal:
        parts.append(f"<polyline points='{at(0, 0)} {at(1, 1)}' fill='none' stroke='#999' stroke-dasharray='4 4'/>")
    parts.append(f"<polyline points='{' '.join(at(x, y) for x, y in points)}' fill='none' stroke='#0b6e4f' "
                 "stroke-width='2'/>")
    for (x, y), size in zip(points, sizes, strict=False):
        cx, cy = at(x, y).split(",")
        parts.append(f"<circle cx='{cx}' cy='{cy}' r='{3 + 9 * size ** 0.5:.1f}' fill='#0b6e4f' opacity='.6'/>")
    parts.append(f"<text x='{edge + side / 2}' y='{side + 50}' text-anchor='middle'>{escape(x_name)}</text>"
                 f"<text transform='translate(12 {12 + side / 2}) rotate(-90)' text-anchor='middle'>{escape(y_name)}"
                 "</text>")
    return "".join(parts) + "</svg>"
