"""The report's lineage section: each finalist's ancestry drawn, back to the first population."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from search.report.ancestry import Ancestry, ancestry, changes, generation, parents
from search.report.data import Entry, ReportData, lookup
from search.report.figures import CANDIDATE, FINALIST, SERIES
from search.report.html import Column, Page, Row, format_number, table
from search.report.nets import best_finalist
from search.report.scores import axes, digits, label, words

LANE, TOP, LEFT = 22, 14, 56  # px between lanes, above the first layer, and for the generations' numbers
TALL, LOW = 40, 18  # px of a layer that the main line has a member in, and of one that it skips
RADIUS = 5
MAX_CHARACTERS = 88  # of the changed genes beside a member of the main line; all are in its tooltip and the table
MUTED = "#5a6675"
COLORS = (*SERIES, "#b42343", "#2a93a5", "#98a81c", "#cf6fae")  # of operators


def add_lineage(page: Page, data: ReportData, target: str) -> None:
    """Add the drawing and the table of every finalist's ancestors."""
    best = best_finalist(data, target)
    for entry in data.finalists.get(target, []):
        found = ancestry(data, entry)
        if found is not None:
            first = found.line[0]["lineage"]["operator"]
            text = f"{len(found.line) - 1} step{'s' * (len(found.line) != 2)} from {first!r}, "
            text += f"{len(found.members) - 1} ancestor{'s' * (len(found.members) != 2)}"
            head = f'<summary><b class="finalist">{escape(str(entry["name"]))}</b>: {escape(text)}</summary>'
            page.add(
                f"<details{' open' if entry is best else ''}>{head}{_legend(found)}{drawing(data, target, found)}"
                f"<details><summary>as a table</summary>{_table(data, target, found)}</details></details>"
            )


def _colors(found: Ancestry) -> dict[str, str]:
    """Return a color for each operator that needs a parent."""
    made = [str(e["lineage"]["operator"]) for e in found.members.values() if parents(e)]
    return {operator: COLORS[i % len(COLORS)] for i, operator in enumerate(sorted(set(made)))}


def _legend(found: Ancestry) -> str:
    dots = {**_colors(found), "first population": ""}
    items = "".join(
        f'<span><i style="background:{color or "#fff"};border-color:{color or MUTED}"></i>{escape(name)}</span>'
        for name, color in dots.items()
    )
    left_out = len(found.members) - len(found.lanes)
    note = f" {left_out} ancestors farther from it are in the table only." if left_out else ""
    return (
        f'<div class="dots">{items}</div><p class="note">One row a generation. Thick: the main line, by the parent '
        f"that is nearer in genes, with what changed; dotted: the other parent.{note} Hover for scores and genes.</p>"
    )


def drawing(data: ReportData, target: str, found: Ancestry) -> str:
    """Return the ancestry as SVG: a layer per generation, the main line with its changes at the right."""
    on_line = {generation(e): e for e in found.line}
    y_of, bottom = {}, TOP
    for layer in found.layers:
        y_of[layer] = bottom + RADIUS
        bottom += TALL if layer in on_line else LOW
    center = LEFT + LANE * max(found.lanes.values()) + 12
    places = {i: (center - LANE * lane, y_of[generation(found.members[i])]) for i, lane in found.lanes.items()}
    width = center + 700
    rows = "".join(
        f'<line x1="{LEFT - 8}" y1="{y}" x2="{center}" y2="{y}" stroke="#eef0f3"/>'
        f'<text x="{LEFT - 18}" y="{y + 4}" text-anchor="end" fill="{MUTED}">{layer}</text>'
        for layer, y in y_of.items()
    )
    line = [e["id"] for e in found.line]
    colors = _colors(found)
    dots = "".join(_dot(data, found, i, places[i], colors, i == line[-1]) for i in places)
    texts = "".join(
        _step(data, target, found, before, entry, places[entry["id"]])
        for before, entry in zip([None, *found.line], found.line, strict=False)
    )
    return (
        f'<div class="tall"><svg role="img" width="{width}" height="{bottom}" viewBox="0 0 {width} {bottom}">'
        f"{rows}{_edges(found, line, places)}{dots}{texts}</svg></div>"
    )


def _edges(found: Ancestry, line: Sequence[int], places: dict[int, tuple[int, int]]) -> str:
    main = set(pairwise(line))
    drawn = []
    for child in places:
        for n, parent in enumerate(parents(found.members[child])):
            if parent not in places:
                continue
            (x1, y1), (x2, y2) = places[parent], places[child]
            bend = max(8, (y2 - y1) // 2)
            path = f"M{x1} {y1}C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2}"
            if (parent, child) in main:
                style = f'stroke="{FINALIST}" stroke-width="3"'
            else:
                first = n == 0 and child not in line
                style = f'stroke="{CANDIDATE}" stroke-width="1.2"' + ("" if first else ' stroke-dasharray="2 3"')
            drawn.append(((parent, child) in main, f'<path d="{path}" fill="none" {style}/>'))
    return "".join(path for _, path in sorted(drawn))  # the main line on top


def _dot(data: ReportData, found: Ancestry, i: int, place: tuple[int, int], colors: dict[str, str], last: bool) -> str:
    entry = found.members[i]
    color = colors[str(entry["lineage"]["operator"])] if parents(entry) else ""
    style = f'fill="{color or "#fff"}" stroke="{"#fff" if color else MUTED}" stroke-width="1.5"'
    ring = (
        f'<circle cx="{place[0]}" cy="{place[1]}" r="{RADIUS + 4}" fill="none" stroke="{FINALIST}" stroke-width="2"/>'
    )
    lines = [f"candidate {i}, generation {generation(entry)}: {_origin(entry)}"]
    lines.append(", ".join(f"{name} {value:.4g}" for name, value in entry["scores"].items()))
    lines += map(str, changes(data.space, data.by_id, entry))
    title = escape("\n".join(lines))
    dot = f'<circle cx="{place[0]}" cy="{place[1]}" r="{RADIUS}" {style}/>'
    return f"<g><title>{title}</title>{ring if last else ''}{dot}</g>"


def _origin(entry: Entry) -> str:
    made_of = " and ".join(map(str, parents(entry)))
    return f"{entry['lineage']['operator']}{f' of {made_of}' if made_of else ''}"


def _step(
    data: ReportData, target: str, found: Ancestry, before: Entry | None, entry: Entry, place: tuple[int, int]
) -> str:
    x, y = place[0] + 16, place[1]
    numbers = []
    for name in reversed(axes(data, target)):
        now, then = lookup(entry, "scores", name), lookup(before or {}, "scores", name)
        if now is not None:
            off = f" ({format_number(now - then, digits(name) + 1, signed=True)})" if then is not None else ""
            plain, unit = words(name)
            numbers.append(f"{plain} {format_number(now, digits(name))} {unit}".rstrip() + off)
    found_changes = list(map(str, changes(data.space, found.members, entry)))
    shown: list[str] = []
    while len(shown) < len(found_changes) and len(", ".join([*shown, found_changes[len(shown)]])) <= MAX_CHARACTERS:
        shown.append(found_changes[len(shown)])
    more = f"{' and ' if shown else ''}{len(found_changes) - len(shown)} more" if found_changes[len(shown) :] else ""
    return (
        f'<text x="{x}" y="{y + 4}"><tspan font-weight="600">{entry["id"]}</tspan> {escape(_origin(entry))}'
        f'<tspan fill="{MUTED}"> · {escape(", ".join(numbers))}</tspan></text>'
        f'<text x="{x}" y="{y + 19}" fill="{MUTED}">{escape(", ".join(shown) + more)}</text>'
    )


def _table(data: ReportData, target: str, found: Ancestry) -> str:
    x, y = axes(data, target)
    columns = [Column("generation", 0), Column("id", 0), Column("main line"), Column("operator"), Column("parents")]
    columns += [Column("genes changed", flow=True)]
    columns += [Column(label(name), digits(name)) for name in (y, x)]
    line = {entry["id"] for entry in found.line}
    rows = [
        Row(
            [
                generation(entry),
                i,
                "yes" if i in line else "",
                entry["lineage"]["operator"],
                ", ".join(map(str, parents(entry))),
                ", ".join(map(str, changes(data.space, found.members, entry))),
                *(lookup(entry, "scores", name) for name in (y, x)),
            ],
            best=i in line,
        )
        for i, entry in found.members.items()
    ]
    return table(columns, rows, sorted_by=1)
