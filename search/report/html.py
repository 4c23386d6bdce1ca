"""The frame of the report: style sheet, page, tables that sort on a click. Nothing is loaded from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from search.report.data import number

STYLE = """
:root { --ink: #1c2430; --soft: #5a6675; --line: #dfe3e9; --accent: #1d5fbf; --warm: #c2570c; }
* { box-sizing: border-box; }
html { scroll-padding-top: 52px; }
body { overflow-wrap: break-word; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 20px 28px 60px; }
nav { position: sticky; top: 0; z-index: 2000; background: #fff; border-bottom: 1px solid var(--line); }
nav div { max-width: 1200px; margin: 0 auto; padding: 9px 28px; }
nav div { display: flex; flex-wrap: wrap; gap: 2px 18px; }
nav a { color: var(--soft); text-decoration: none; font-size: 13px; }
nav a:hover { color: var(--accent); }
nav b { font-size: 13px; }
h1 { font-size: 30px; line-height: 1.2; margin: 14px 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 44px 0 6px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 26px 0 4px; }
p { margin: 4px 0 10px; max-width: 84ch; }
.lead { font-size: 17px; max-width: none; }
.note, figcaption { color: var(--soft); font-size: 13.5px; max-width: 100ch; }
.missing { color: var(--soft); background: #f5f6f8; padding: 8px 12px; border-radius: 6px; max-width: none; }
.facts { display: grid; gap: 12px; margin: 18px 0; }
.facts { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.facts div { border: 1px solid var(--line); border-radius: 8px; padding: 9px 13px; overflow-wrap: anywhere; }
.facts span { display: block; color: var(--soft); font-size: 12.5px; }
.facts b { font-size: 16px; font-weight: 600; }
.wide { overflow-x: auto; margin: 8px 0 12px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.data.full { min-width: 100%; }
.data td, .data th { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line); }
.data td { white-space: nowrap; }
.data td.text, .data th.text { text-align: left; }
.data td.flow { white-space: normal; min-width: 220px; text-align: left; }
.data th { font-weight: 600; color: var(--soft); vertical-align: bottom; font-size: 12.5px; }
.data tr.groups th { border-bottom: 0; padding-bottom: 0; text-align: left; color: var(--ink); }
.data th button { all: unset; cursor: pointer; }
.data th button:hover, .data th button:focus-visible { color: var(--accent); text-decoration: underline; }
.data th[aria-sort=ascending] button::after { content: " \\25B2"; font-size: 9px; }
.data th[aria-sort=descending] button::after { content: " \\25BC"; font-size: 9px; }
.data .edge { border-left: 1px solid var(--line); }
.finalist { color: var(--accent); font-weight: 600; }
.baseline { color: var(--warm); }
tr.best td { background: #eef4fc; }
.grid td, .grid th { font-size: 12px; padding: 2px 1px; }
.grid td { width: 52px; min-width: 52px; height: 24px; text-align: center; border: 2px solid #fff; }
.grid th { font-weight: 600; text-align: left; white-space: nowrap; padding-right: 8px; }
.grid tr.names th { font-weight: 400; color: var(--soft); text-align: center; white-space: normal; }
.grid tr.names th { padding: 0 3px 3px; line-height: 1.2; max-width: 54px; vertical-align: bottom; }
.grid td.dropped { font-size: 11px; }
.dropped { color: var(--soft);
  background: repeating-linear-gradient(135deg, #e7eaee 0 4px, #f6f7f9 4px 8px); }
.nets { display: flex; flex-wrap: wrap; gap: 6px 28px; }
.nets > div { max-width: 100%; }
.chips { margin: 4px 0; }
.chip { display: inline-block; font-size: 12px; padding: 2px 8px; border-radius: 4px; }
.chip { margin-right: 6px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
.cards > div { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; min-width: 0; }
.cards h4 { margin: 0 0 6px; font-size: 13.5px; }
pre { margin: 0; font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.code { background: #f5f6f8; border-radius: 6px; padding: 10px 14px; margin: 6px 0 12px; }
details { margin: 8px 0; } summary { cursor: pointer; }
figure { margin: 0; }
.tall { overflow: auto; max-height: 820px; margin: 4px 0 8px; }
.tall svg { display: block; font: 12.5px system-ui, "Segoe UI", sans-serif; }
.dots { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 8px 0 2px; font-size: 13px; }
.dots i { display: inline-block; width: 10px; height: 10px; border: 1.5px solid; border-radius: 50%; }
.dots i { margin-right: 6px; }
@media print { nav { display: none; } .tall { max-height: none; } h2 { break-after: avoid; } }
"""

SORT_SCRIPT = """
document.querySelectorAll("table.data").forEach(function (table) {
  table.querySelectorAll("tr.heads th").forEach(function (head, column) {
    head.querySelector("button").addEventListener("click", function () {
      var up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("tr.heads th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      var body = table.tBodies[0];
      function key(row) { return row.cells[column].getAttribute("data-key"); }
      Array.from(body.rows).sort(function (a, b) {
        var x = key(a), y = key(b);
        if (x === "" || y === "") { return (x === "") - (y === ""); }  // what is missing stays last
        var order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
        return up ? order : -order;
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""

# The browser itself refuses whatever would be loaded from elsewhere.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: the head, with its unit.
        digits: decimals of its numbers; None for text.
        group: a head above neighboring columns of the same group.
        percent: show a share as a percentage.
        flow: let long text wrap.
    """

    name: str
    digits: int | None = None
    group: str = ""
    percent: bool = False
    flow: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a table: its values, the class of its first cell, whether it is the one to look at."""

    values: Sequence[object]
    kind: str = ""
    best: bool = False


def format_number(value: object, digits: int, percent: bool = False, signed: bool = False) -> str:
    """Return a number as text with thousands separated, an en dash for what is absent or not finite.

    What rounds to zero has no sign.
    """
    known = number(value)
    if known is None:
        return "–"
    sign = "+" if signed else ""
    return f"{known:{sign}z.{digits}%}" if percent else f"{known:{sign}z,.{digits}f}"


def table(columns: Sequence[Column], rows: Sequence[Row], sorted_by: int | None = None) -> str:
    """Return a table whose heads sort it; `sorted_by` is the column whose order the rows already have."""
    heads = ""
    for i, column in enumerate(columns):
        order = ' aria-sort="ascending"' if i == sorted_by else ""
        heads += f'<th class="{_css(columns, i)}"{order}><button>{escape(column.name)}</button></th>'
    groups = ""
    if any(column.group for column in columns):
        starts = [i for i, c in enumerate(columns) if i == 0 or c.group != columns[i - 1].group]
        for start, end in zip(starts, [*starts[1:], len(columns)], strict=True):
            edge = ' class="edge"' if start and columns[start].group else ""
            groups += f'<th colspan="{end - start}"{edge}>{escape(columns[start].group)}</th>'
        groups = f'<tr class="groups">{groups}</tr>'
    body = "".join(_row(columns, row) for row in rows)
    css = "data full" if len(columns) > 5 else "data"
    head = f'<thead>{groups}<tr class="heads">{heads}</tr></thead>'
    return f'<div class="wide"><table class="{css}">{head}<tbody>{body}</tbody></table></div>'


def _css(columns: Sequence[Column], i: int) -> str:
    edge = i > 0 and columns[i].group != columns[i - 1].group
    text = columns[i].digits is None
    names = ("text" if text else "", "flow" if columns[i].flow else "", "edge" if edge else "")
    return " ".join(filter(None, names))


def _row(columns: Sequence[Column], row: Row) -> str:
    cells = ""
    for i, (column, value) in enumerate(zip(columns, row.values, strict=True)):
        css = f"{_css(columns, i)} {row.kind if i == 0 else ''}".strip()
        if column.digits is None:
            text = key = "" if value is None else str(value)
        else:
            text = format_number(value, column.digits, column.percent)
            key = "" if number(value) is None else repr(value)
        cells += f'<td class="{css}" data-key="{escape(key)}">{escape(text)}</td>'
    mark = ' class="best"' if row.best else ""
    return f"<tr{mark}>{cells}</tr>"


class Page:
    """Collects the sections of the page and its figures."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []
        self._links: list[tuple[str, str]] = []
        self._figures = 0

    def add(self, *html: str) -> None:
        """Append HTML; whatever came from a file is already escaped."""
        self._parts += [part for part in html if part]

    def section(self, title: str, link: str | None = None) -> None:
        """Start a section that the bar at the top links to."""
        anchor = f"section-{len(self._links) + 1}"
        self._links.append((anchor, link or title))
        self.add(f'<h2 id="{anchor}">{escape(title)}</h2>')

    def figure(self, figure: object, caption: str = "") -> None:
        """Append a plotly figure; `caption` is HTML."""
        import plotly.io

        self._figures += 1
        # No button that would send the figure, and with it the user's data, to plotly's cloud.
        private = {"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False}
        config = {**private, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
        name = f"figure-{self._figures}"
        html = plotly.io.to_html(figure, config=config, include_plotlyjs=False, full_html=False, div_id=name)
        self.add(f"<figure>{html}<figcaption>{caption}</figcaption></figure>")

    def html(self) -> str:
        """Return the whole page."""
        from plotly.offline import get_plotlyjs

        links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name in self._links)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
            f"<body><nav><div><b>{escape(self.title)}</b>{links}</div></nav><main>\n"
            + "\n".join(self._parts)
            + f"\n</main><script>{SORT_SCRIPT}</script></body></html>\n"
        )
