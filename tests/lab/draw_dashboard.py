#!/usr/bin/env python3
"""Draws the dashboard from a Prometheus as one SVG: each panel with the expressions that Grafana would ask for.

Arguments: the address of Prometheus, the first and the last second (since 1970) of the picture, a file of events (a
second, a tab and what happened on each line), what the picture is of, and where it goes. An expression that gives
nothing is an error, as is anything in the dashboard that this program does not know.
"""

import json
import math
import sys
import time
import urllib.parse
import urllib.request
from html import escape
from pathlib import Path

DASHBOARD = Path(__file__).resolve().parents[2] / "systemd/growd.dashboard.json"
STEP = 3  # seconds between two points

# Pixels, of the picture and, from `COLUMN` on, of a step of Grafana's grid, which is 24 wide.
MARGIN, COLUMN, ROW, GAP = 16, 64, 40, 10
AXIS, TITLE, TIMES, LEGEND_ROW, LETTER = 58, 30, 20, 15, 7
COLOURS = ["#1f77b4", "#e8710a", "#2a9d3a", "#d62728", "#8e5bc0", "#7a4a3a", "#e0409a", "#17a2b8", "#8a8a00", "#4d4d4d"]


def query(prometheus, expression, start, end):
    """The series of an expression, each as its labels and its points by their time."""
    if "$" in expression:
        sys.exit(f"variables of Grafana are not known here: {expression}")
    arguments = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": STEP})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{arguments}", timeout=60) as answer:
        series = json.load(answer)["data"]["result"]
    numbers = [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in series]
    # A quantile of nothing is not a number: Grafana draws no line there, either.
    known = [(labels, [point for point in points if math.isfinite(point[1])]) for labels, points in numbers]
    known = [(labels, points) for labels, points in known if points]
    if not known:
        sys.exit(f"no data for {expression}")
    return known


def named(legend, labels):
    for label, value in labels.items():
        legend = legend.replace("{{" + label + "}}", value)
    # A label that is empty is one that the series has not.
    return " ".join(word for word in legend.split() if not word.startswith("{{"))


def decimal(value, unit):
    return f"{value:.6g}{unit}" if value else "0"


def seconds(value):
    return decimal(value * 1000, " ms") if value < 1 else decimal(value, " s")


def binary(value):
    power = min(int(math.log(value, 1024)), 4) if value >= 1 else 0
    return decimal(value / 1024**power, " " + ["B", "KiB", "MiB", "GiB", "TiB"][power])


# How a value of a unit of Grafana is written, and the base in which its axis has round numbers.
UNITS = {
    "short": (lambda value: decimal(value, ""), 10),
    "ops": (lambda value: decimal(value, "/s"), 10),
    "s": (seconds, 10),
    "bytes": (binary, 1024),
    "percentunit": (lambda value: decimal(value * 100, " %"), 10),
}


def axis(most, base, whole):
    """Steps from 0 to above `most`, four to six or so, at round numbers of the base."""
    most = most or 1
    rounds = [2**power for power in range(11)] if base == 1024 else [1, 2, 5, 10]
    unit = float(base) ** math.floor(math.log(most / 5, base))
    step = next(unit * number for number in rounds if unit * number >= most / 5)
    if whole:
        step = max(step, 1)
    return [step * number for number in range(math.floor(most / step) + 2)]


def text(x, y, words, size=11, colour="#555", anchor="start", weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
        f' font-weight="{weight}">{escape(words, quote=False)}</text>'
    )


def line(x1, y1, x2, y2, colour, more=""):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def legend(names, width):
    """The place of each name below a panel, as row and x, in rows that are full."""
    places, row, x = [], 0, 0
    for name in names:
        needs = 20 + len(name) * LETTER + 12
        if x and x + needs > width:
            row, x = row + 1, 0
        places.append((row, x))
        x += needs
    return places


def path(points, to_x, to_y):
    """A line through the points, with a gap wherever one is missing; of a level stretch only the ends."""
    parts = []
    for number, (at, value) in enumerate(points):
        before = points[number - 1] if number else None
        after = points[number + 1] if number + 1 < len(points) else None
        goes_on = before and at - before[0] <= STEP * 1.5
        level = goes_on and after and after[0] - at <= STEP * 1.5 and before[1] == value == after[1]
        if not level:
            parts.append(f"{'L' if goes_on else 'M'}{to_x(at):.1f} {to_y(value):.1f}")
    return "".join(parts)


def panel(of, prometheus, start, end, events):
    grid, defaults = of["gridPos"], of["fieldConfig"]["defaults"]
    write, base = UNITS[defaults["unit"]]
    if defaults["min"] != 0:
        sys.exit(f"the panel {of['title']} does not begin at 0")
    series = [
        (named(target["legendFormat"], labels), points)
        for target in of["targets"]
        for labels, points in query(prometheus, target["expr"], start, end)
    ]
    series.sort()
    left, top = grid["x"] * COLUMN, grid["y"] * ROW
    width, height = grid["w"] * COLUMN - GAP, grid["h"] * ROW - GAP
    places = legend([name for name, _ in series], width - 24)
    plot_left, plot_right = left + AXIS, left + width - 24
    plot_top, plot_bottom = top + TITLE + 8, top + height - TIMES - (places[-1][0] + 1) * LEGEND_ROW - 6

    ticks = axis(max(value for _, points in series for _, value in points), base, defaults["unit"] == "short")

    def to_x(at):
        return plot_left + (at - start) / (end - start) * (plot_right - plot_left)

    def to_y(value):
        return plot_bottom - value / ticks[-1] * (plot_bottom - plot_top)

    parts = [
        *(f"<desc>{escape(target['expr'], quote=False)}</desc>" for target in of["targets"]),
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="4" fill="#fff" stroke="#d9d9e0"/>',
        text(left + 12, top + 20, of["title"], 13, "#222", weight="600"),
    ]
    for tick in ticks:
        parts.append(line(plot_left, to_y(tick), plot_right, to_y(tick), "#e8e8ee"))
        parts.append(text(plot_left - 6, to_y(tick) + 4, write(tick), anchor="end"))
    for minute in range(int(end - start) // 60 + 1):
        x = to_x(start + minute * 60)
        parts.append(line(x, plot_bottom, x, plot_bottom + 4, "#999"))
        parts.append(text(x, plot_bottom + 16, f"{minute} min", 10, anchor="middle"))
    for number, (at, _) in enumerate(events, 1):
        parts.append(line(to_x(at), plot_top, to_x(at), plot_bottom, "#aaa", ' stroke-dasharray="2 3"'))
        parts.append(text(to_x(at), plot_top - 3, str(number), 9, "#888", "middle"))
    for number, ((name, points), (row, x)) in enumerate(zip(series, places)):
        colour = COLOURS[number % len(COLOURS)]
        # The dashes of a line let one below it be seen.
        style = f'stroke="{colour}" stroke-width="1.8"' + (' stroke-dasharray="6 3"' if number % 2 else "")
        parts.append(f'<path d="{path(points, to_x, to_y)}" fill="none" {style} stroke-linejoin="round"/>')
        y = plot_bottom + TIMES + 8 + row * LEGEND_ROW
        parts.append(f'<path d="M{left + 12 + x:.1f} {y - 4}h16" {style}/>')
        parts.append(text(left + 12 + x + 20, y, name, colour="#333"))
    parts = ["<g>", *parts, "</g>"]
    print(f"{of['title']}: {len(series)} lines, up to {write(max(v for _, points in series for _, v in points))}")
    return parts


def main(prometheus, start, end, events, of, picture):
    start, end = float(start), float(end)
    events = [(float(at), what) for at, what in (line.split("\t") for line in Path(events).read_text().splitlines())]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    parts = [part for one in panels for part in panel(one, prometheus, start, end, events)]
    right = max(one["gridPos"]["x"] + one["gridPos"]["w"] for one in panels) * COLUMN - GAP
    bottom = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in panels) * ROW - GAP
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(start))
    parts.append(text(0, bottom + 28, f"{of}; {when}.", 12, "#222"))
    rows = math.ceil(len(events) / 2)
    for number, (at, what) in enumerate(events):
        column, row = divmod(number, rows)
        words = f"{number + 1}  {int(at - start) // 60}:{int(at - start) % 60:02} min: {what}"
        parts.append(text(column * right / 2, bottom + 50 + row * 17, words))
    width, height = right + 2 * MARGIN, bottom + 50 + rows * 17 + 2 * MARGIN - 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="Helvetica, Arial, sans-serif" role="img">'
        f"<title>{escape(of)}</title>"
        f'<rect width="{width}" height="{height}" fill="#f6f6f9"/><g transform="translate({MARGIN} {MARGIN})">'
    )
    Path(picture).write_text("\n".join([head, *parts, "</g></svg>", ""]))


main(*sys.argv[1:])
