"""The report's section about what each choice is worth: findings in words, and two heat maps of one color scale."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from search.findings import tolerance
from search.report.data import ReportData, number
from search.report.grids import Cell, Grid, grid_html, ramp, split_name
from search.report.html import Page

RAMP = ((255, 251, 240), (158, 28, 46))
STEPS = 5  # of the color scale that is shown


def add_sensitivity(page: Page, data: ReportData) -> None:
    """Add the section, if there is a profile."""
    if not data.sensitivity:
        return
    content = data.sensitivity
    page.section("What each choice is worth", "Sensitivity")
    lines = "".join(f"<li>{escape(str(line))}</li>" for line in content.get("findings") or [])
    scale = "".join(
        f'<span class="chip" style="background:{color};color:{Cell("", color, "").ink}">{rise:.3f}</span>'
        for rise, color in color_scale(data)
    )
    page.add(
        f"<ul>{lines}</ul>",
        f'<p class="note">Rise of the loss, in nats per token, when one gene alone takes a cheaper choice than in the '
        f"largest net: inherited weights, {content['sequences']} sequences of the {escape(str(content['split']))} "
        f"split. Hover for standard errors and bytes saved. {scale} (the color grows with the logarithm)</p>",
    )
    for title, laid_out in heat_maps(data).items():
        page.add(f"<h3>{escape(title)}</h3>", grid_html(laid_out))


def heat_maps(data: ReportData) -> dict[str, Grid]:
    """Return by title the layers × projections × formats, and the layers × structure; those that have any cell."""
    grids = {"Formats": _grid(data, formats=True), "Structure": _grid(data, formats=False)}
    return {title: laid_out for title, laid_out in grids.items() if laid_out.rows or laid_out.single}


def color_scale(data: ReportData) -> list[tuple[float, str]]:
    """Return (rise, color) from none to the largest."""
    top, unit = _largest(data), tolerance(data.sensitivity)
    rises = [unit * math.expm1(i / (STEPS - 1) * math.log1p(top / unit)) for i in range(STEPS)]
    return [(rise, _color(data, rise)) for rise in rises]


def _largest(data: ReportData) -> float:
    rises = [rise for gene in data.sensitivity["genes"] for rise in gene["rise"] if number(rise) is not None]
    return max(1e-9, *rises)


def _color(data: ReportData, rise: float) -> str:
    unit = tolerance(data.sensitivity)
    return ramp(RAMP, math.log1p(max(0.0, rise) / unit) / math.log1p(_largest(data) / unit))


def _grid(data: ReportData, formats: bool) -> Grid:
    rows: dict[str, dict[str, Cell]] = {}
    columns: dict[str, None] = {}
    single: list[Cell] = []
    for gene in data.sensitivity["genes"]:
        if (gene["kind"] == "format") is not formats:
            continue
        prefix, part = split_name(gene["name"])
        for k, choice in enumerate(gene["choices"][:-1]):
            column = _column(part, gene["kind"], choice)
            if prefix is None:
                cell = _cell(data, gene, k, f"{gene['name']} {choice}")
                single += [cell] if cell is not None else []
                continue
            columns[column] = None
            cell = _cell(data, gene, k, f"{gene['name']} = {choice}")
            if cell is not None:
                rows.setdefault(prefix, {})[column] = cell
    # Columns of a part side by side, although one layer may offer choices that the first does not.
    parts = list(dict.fromkeys(column.split(".")[0] for column in columns))
    ordered = sorted(columns, key=lambda column: parts.index(column.split(".")[0]))
    return Grid(ordered, [(prefix, [cells.get(c) for c in ordered]) for prefix, cells in rows.items()], single)


def _column(part: str, kind: str, choice: object) -> str:
    """Return a column's name, its group before the first dot."""
    block, _, rest = part.rpartition(".")
    if kind == "format":
        return f"{block} {rest.removesuffix('format').rstrip('_')}".strip() + f".{choice}"
    return f"{block}.drop" if kind == "switch" else f"{block}.{rest} {choice}"


def _cell(data: ReportData, gene: Mapping[str, Any], k: int, name: str) -> Cell | None:
    rise = number(gene["rise"][k])
    if rise is None:
        return None
    error, saved = number(gene["standard_error"][k]) or 0.0, gene["bytes_saved"][k] / 1e6
    text = f"{rise:.3f}".replace("-0.000", "0.000")
    if split_name(gene["name"])[0] is not None:
        name += f": {rise:+.4f} ± {error:.4f} nats, saves {saved:.3f} MB"
    return Cell(text, _color(data, rise), name)
