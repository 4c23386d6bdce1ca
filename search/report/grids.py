"""An architecture as a picture: a grid of layers × genes, each cell with a text and a color.

Nothing here knows a gene by name. `layers.3.mlp.width` becomes row `layers.3`, column `mlp.width`; genes
outside such a numbered prefix become cells of their own above the grid.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from html import escape
from itertools import pairwise

from supernet.genes import Gene, SearchSpace

NUMBERED = re.compile(r"(.+?\.\d+)\.(.+)")
DROPPED = "dropped"
WIDTH_RAMP = ((232, 243, 236), (24, 107, 72))
FORMAT_RAMP = ((240, 234, 248), (84, 45, 130))
SWITCH_ON = "#eef0f3"
BLANK = "#ffffff"


@dataclass(frozen=True)
class Cell:
    """One gene's value.

    Attributes:
        text: what is printed; empty where a dropped block leaves nothing to decide.
        color: background as `#rrggbb`.
        gene: the gene's full name.
    """

    text: str
    color: str
    gene: str

    @property
    def ink(self) -> str:
        """The text color that can be read on the background."""
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        return "#1c2430" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


@dataclass(frozen=True)
class Grid:
    """An architecture's picture.

    Attributes:
        columns: the part of the gene names after the numbered prefix.
        rows: (prefix, one cell per column; None where that layer has no such gene).
        single: cells of the genes without a numbered prefix.
    """

    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    single: list[Cell]


def split_name(name: str) -> tuple[str | None, str]:
    """Return a gene's numbered prefix (None if it has none) and the part after it."""
    match = NUMBERED.fullmatch(name)
    return (match[1], match[2]) if match else (None, name)


def grid(space: SearchSpace, genome: Sequence[int]) -> Grid:
    """Lay out a genome."""
    formats = format_order(space)
    names = [split_name(gene.name) for gene in space]
    columns = list(dict.fromkeys(part for prefix, part in names if prefix))
    rows: dict[str, list[Cell | None]] = {prefix: [None] * len(columns) for prefix, _ in names if prefix}
    single: list[Cell] = []
    for gene, index, (prefix, part) in zip(space, genome, names, strict=True):
        needed = space.position[gene.needs] if gene.needs else None
        absent = needed is not None and space.genes[needed].choices[genome[needed]] == 0
        cell = Cell("", BLANK, gene.name) if absent else _cell(gene, index, formats)
        if prefix:
            rows[prefix][columns.index(part)] = cell
        else:
            single.append(cell)
    return Grid(columns, list(rows.items()), single)


def _cell(gene: Gene, index: int, formats: Sequence[str]) -> Cell:
    value = gene.choices[index]
    if gene.kind == "switch":
        return Cell("on", SWITCH_ON, gene.name) if value else Cell(DROPPED, "#d5d9df", gene.name)
    if gene.kind == "format":
        share = formats.index(str(value)) / max(1, len(formats) - 1)
        return Cell(str(value), ramp(FORMAT_RAMP, share), gene.name)
    largest = gene.choices[-1]
    numeric = isinstance(value, int) and isinstance(largest, int) and largest > 0
    share = value / largest if numeric else index / max(1, len(gene.choices) - 1)  # type: ignore[operator]
    return Cell(str(value), ramp(WIDTH_RAMP, share), gene.name)


def format_order(space: SearchSpace) -> list[str]:
    """Return every weight format of the space in ascending bits; each gene's choices already ascend."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for gene in space:
        if gene.kind == "format":
            names = [str(choice) for choice in gene.choices]
            order.add(names[0])
            for cheaper, dearer in pairwise(names):
                order.add(dearer, cheaper)
    return list(order.static_order())


def ramp(ends: tuple[tuple[int, int, int], tuple[int, int, int]], share: float) -> str:
    """Return the color at `share` (0 to 1) of the way between two colors, as `#rrggbb`."""
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))


def summary_lines(space: SearchSpace, genome: Sequence[int]) -> list[str]:
    """Return an architecture as short lines, one a layer, for a tooltip."""
    laid_out = grid(space, genome)
    lines = [" · ".join(f"{cell.gene} {cell.text}" for cell in laid_out.single if cell.text)]
    for prefix, cells in laid_out.rows:
        blocks: dict[str, list[str]] = {}
        for column, cell in zip(laid_out.columns, cells, strict=True):
            if cell is not None and cell.text:
                blocks.setdefault(column.split(".")[0], []).append(cell.text)
        texts = [f"{name} {' '.join(text for text in values if text != 'on')}" for name, values in blocks.items()]
        lines.append(f"{prefix}: {' | '.join(texts)}")
    return [line for line in lines if line]


def column_groups(columns: Sequence[str]) -> list[tuple[str, int]]:
    """Return (block, number of columns) for the header above the columns."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        block = column.split(".")[0] if "." in column else ""
        if groups and groups[-1][0] == block:
            groups[-1] = (block, groups[-1][1] + 1)
        else:
            groups.append((block, 1))
    return groups


def column_name(column: str) -> str:
    """Return a column's name below its block's name, with spaces so that it can wrap; Q4_0 stays a word."""
    return re.sub(r"_(?=[a-z])|\.", " ", column.split(".", 1)[-1])


def grid_html(laid_out: Grid) -> str:
    """Return the grid as an HTML table."""
    chips = "".join(
        f'<span class="chip" style="background:{cell.color};color:{cell.ink}">{escape(cell.gene)} '
        f"<b>{escape(cell.text)}</b></span>"
        for cell in laid_out.single
        if cell.text
    )
    groups = "".join(f'<th colspan="{n}">{escape(block)}</th>' for block, n in column_groups(laid_out.columns))
    heads = "".join(f"<th>{escape(column_name(column))}</th>" for column in laid_out.columns)
    body = "".join(
        f"<tr><th>{escape(prefix)}</th>{''.join(_cell_html(cell) for cell in cells)}</tr>"
        for prefix, cells in laid_out.rows
    )
    table = f'<table class="grid"><tr><th></th>{groups}</tr><tr class="names"><th></th>{heads}</tr>{body}</table>'
    return f'<div class="chips">{chips}</div><div class="wide">{table if laid_out.rows else ""}</div>'


def _cell_html(cell: Cell | None) -> str:
    if cell is None or not cell.text:
        return "<td></td>"
    if cell.text == DROPPED:
        return f'<td class="dropped" title="{escape(cell.gene)}">{DROPPED}</td>'
    style = f"background:{cell.color};color:{cell.ink}"
    return f'<td style="{style}" title="{escape(cell.gene)}">{escape(cell.text)}</td>'
