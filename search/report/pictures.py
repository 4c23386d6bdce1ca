"""The report's PNG files: the same results for a slide, a README or a terminal without a browser."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from search.entries import shipped
from search.report import scores
from search.report.data import ReportData, lookup
from search.report.figures import (
    BASELINE,
    BUDGET,
    CANDIDATE,
    FINALIST,
    FRONT,
    GRID,
    INFEASIBLE,
    SERIES,
    Named,
    known,
    points_of,
)
from search.report.figures_over_time import EXPECTED, LEANING, gate_leaning, progress_panels
from search.report.grids import BLANK, DROPPED, Cell, Grid, column_groups, column_name, grid
from search.report.labels import Canvas, Point, places
from search.report.nets import short_name, size_of
from search.report.scores import label
from search.report.sensitivity import color_scale, heat_maps
from supernet.files import replacing

DPI = 150
MAX_DRAWN = 12  # finalists in one picture


def write_pictures(data: ReportData) -> list[Path]:
    """Write the PNGs that the data allows, remove those of an earlier report, and return the paths."""
    drawn = []
    for name, draw in PICTURES.items():
        path = data.search_dir / f"{name}.png"
        figure = draw(data)
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")
        drawn.append(path)
    return drawn


def _figure(width: float, height: float) -> Any:
    # Figure without pyplot: no global state, and savefig takes Agg for a PNG whatever the user's backend.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plain(axes: Any, x: str, y: str, title: str) -> Any:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def front(data: ReportData) -> Any:
    """The front of every target."""
    figure = _figure(8, 4.6 * max(1, len(data.targets)))
    for row, target in enumerate(data.targets):
        plane = x_name, y_name = scores.axes(data, target)
        axes = figure.add_subplot(len(data.targets), 1, row + 1)
        _plain(axes, label(x_name), label(y_name), _plain_text(target))
        where, fits = partial(scores.position, data, plane), scores.feasible(data, target)
        named: list[Named] = []
        for entries, name, style in (
            ([c for c in data.whole if c["id"] not in fits], "over budget", {"color": INFEASIBLE, "s": 14}),
            ([c for c in data.whole if c["id"] in fits], "candidates", {"color": CANDIDATE, "s": 14}),
            (
                data.baselines.get(target, []),
                "baselines",
                {"color": BASELINE, "marker": "D", "s": 40, "zorder": 4},
            ),
            (data.finalists.get(target, []), "finalists", {"color": FINALIST, "s": 60, "zorder": 5}),
        ):
            shown = [(point, e) for e in entries if (point := known(where(e))) is not None]
            if not shown:
                continue
            axes.scatter([p[0] for p, _ in shown], [p[1] for p, _ in shown], label=name, linewidths=0, **style)
            if "zorder" in style:
                named += [(point, short_name(entry), str(style["color"])) for point, entry in shown]
        line = sorted(points_of(data.front.get(target, []), where))
        _write_names(axes, named, points_of(data.whole, where), line)
        flat = set(scores.objectives(data, target)) <= set(plane)  # else a line would jump
        style = {"color": FRONT, "lw": 1.2 if flat else 0, "marker": ".", "label": "front"}
        axes.plot([p[0] for p in line], [p[1] for p in line], **style)
        for name, draw in ((x_name, axes.axvline), (y_name, axes.axhline)):
            bound = scores.bounds(data, target).get(name)
            if bound is not None:
                draw(scores.on_axis(name, bound), color=BUDGET, ls="--", lw=1.2, label=f"budget {bound:g}")
        _write_decades(axes.xaxis, x_name)
        _write_decades(axes.yaxis, y_name)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _write_decades(axis: Any, score: str) -> None:
    """Write the values beside an axis that shows their logarithms."""
    from matplotlib.ticker import MultipleLocator

    if scores.logarithmic(score):
        axis.set_major_locator(MultipleLocator(1))
        axis.set_major_formatter(lambda decade, _: f"{10.0**decade:g}")


def _write_names(axes: Any, named: Sequence[Named], drawn: Sequence[Point], marks: Sequence[Point]) -> None:
    points, names = [point for point, _, _ in named], [name for _, name, _ in named]
    canvas = Canvas([*drawn, *marks, *points], (500, 280), 8)  # in points, of a picture of 8 x 4.6 inches
    for (point, name, color), place in zip(named, places(canvas, points, names, marks), strict=True):
        line = {"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkB": 4} if place.apart else None
        where = {"xytext": (place.x, place.y), "textcoords": "offset points", "ha": "center", "va": "center"}
        axes.annotate(_plain_text(name), point, fontsize=canvas.font, color=color, arrowprops=line, **where)


def finalists(data: ReportData) -> Any:
    """The architecture of each finalist, two side by side."""
    from matplotlib.patches import Rectangle

    shown = {
        f"{target if len(data.targets) > 1 else ''} {e['name']}".strip(): e
        for target in data.targets
        for e in data.finalists.get(target, [])
    }
    items = list(shown.items())[:MAX_DRAWN]
    if not items:
        return None
    grids = [grid(data.space, entry["genome"]) for _, entry in items]
    n_columns = max(len(g.columns) for g in grids)
    n_rows = len(grids[0].rows) + 3
    side_by_side = min(2, len(items))
    down = -(-len(items) // side_by_side)
    figure = _figure(side_by_side * max(5.0, 0.72 * n_columns + 1), down * max(1.4, 0.27 * n_rows + 0.5))
    for i, ((name, entry), laid_out) in enumerate(zip(items, grids, strict=True)):
        axes = figure.add_subplot(down, side_by_side, i + 1)
        size, loss = size_of(entry), lookup(shipped(entry), "test_loss")
        title = name + (f": {size:.2f} MB" if size is not None else "")
        title += f", test loss {loss:.3f}" if loss is not None else ""
        axes.set_title(_plain_text(title), loc="left", fontsize=10)
        _draw_grid(axes, laid_out, Rectangle)
    return figure


def _draw_grid(axes: Any, laid_out: Grid, rectangle: Callable[..., Any]) -> None:
    n_rows = len(laid_out.rows)
    axes.set_xlim(-1.4, max(1, len(laid_out.columns)))
    axes.set_ylim(n_rows, -2.6)
    axes.axis("off")
    single = "   ".join(f"{cell.gene} {cell.text}" for cell in laid_out.single if cell.text)
    axes.text(-1.4, -2.2, _plain_text(single), fontsize=8, va="center")
    left = 0
    for block, width in column_groups(laid_out.columns):
        axes.text(left + 0.05, -1.4, _plain_text(block), fontsize=8, va="center", weight="bold")
        left += width
    for x, column in enumerate(laid_out.columns):
        name = _plain_text(column_name(column)).replace(" ", "\n", 1)
        axes.text(x + 0.5, -0.55, name, fontsize=6, ha="center", va="center", linespacing=0.95)
    for y, (prefix, cells) in enumerate(laid_out.rows):
        axes.text(-0.1, y + 0.5, _plain_text(prefix), fontsize=7, ha="right", va="center")
        for x, cell in enumerate(cells):
            _draw_cell(axes, x, y, cell or Cell("", BLANK, ""), rectangle)


def _draw_cell(axes: Any, x: int, y: int, cell: Cell, rectangle: Callable[..., Any]) -> None:
    dropped = cell.text == DROPPED
    style = {"hatch": "////", "edgecolor": "#aab2bd", "linewidth": 0} if dropped else {"linewidth": 0}
    axes.add_patch(rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=cell.color, **style))
    ink = {"color": FRONT, "bbox": {"facecolor": "white", "linewidth": 0, "pad": 0.5}} if dropped else {}
    text = _plain_text(cell.text)
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7, **{"color": cell.ink, **ink})


def gates(data: ReportData) -> Any:
    """Expected size and leaning of the gates over training, one column a budget."""
    from matplotlib.colors import LinearSegmentedColormap

    if not data.gate_sets:
        return None
    colors = LinearSegmentedColormap.from_list("leaning", list(LEANING))
    n_sets = len(data.gate_sets)
    n_genes = len(gate_leaning(data, 0)[1])
    figure = _figure(3.2 + 3.2 * n_sets, 3.2 + 0.13 * n_genes)
    parts = figure.add_gridspec(2, n_sets, height_ratios=[2.2, max(1.0, 0.13 * n_genes)])
    image = heat = None
    steps = [record["step"] for record in data.gates["history"]]
    for i, one_set in enumerate(data.gate_sets):
        panel = figure.add_subplot(parts[0, i])
        axes = _plain(panel, "training step", EXPECTED[one_set.unit], f"budget {one_set.name}")
        axes.plot(steps, one_set.expected, color=SERIES[i % len(SERIES)])
        axes.axhline(one_set.budget, color=BUDGET, ls="--", lw=1)
        shown, genes, leaning, _ = gate_leaning(data, i)
        heat = figure.add_subplot(parts[1, i])
        edges = (shown[0], max(shown[-1], shown[0] + 1), n_genes - 0.5, -0.5)
        image = heat.imshow(leaning or [[0.5]], aspect="auto", cmap=colors, vmin=0, vmax=1, extent=edges)
        names = [_plain_text(name) for name in genes] if i == 0 else [""] * n_genes
        heat.set_yticks(range(n_genes), names, fontsize=6)
        heat.set_xlabel("training step")
    bar = figure.colorbar(image, ax=heat, ticks=[0, 1], fraction=0.08)
    bar.ax.set_yticklabels(["cheapest", "dearest"], fontsize=7)
    return figure


def sensitivity(data: ReportData) -> Any:
    """What each choice is worth: layers × projections × formats above layers × structure, in the same colors."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    if not data.sensitivity:
        return None
    maps = heat_maps(data)
    rows = [max(1, len(laid_out.rows)) + 3 for laid_out in maps.values()]
    figure = _figure(2.2 + 0.46 * max(len(laid_out.columns) for laid_out in maps.values()), 0.3 * sum(rows) + 0.8)
    parts = figure.add_gridspec(len(maps), 1, height_ratios=rows)
    panels = []
    for i, (title, laid_out) in enumerate(maps.items()):
        panels.append(figure.add_subplot(parts[i, 0]))
        panels[-1].set_title(f"{title}: rise of the loss (nats/token), each choice alone", loc="left", fontsize=10)
        _draw_grid(panels[-1], laid_out, Rectangle)
    scale = color_scale(data)
    colors = LinearSegmentedColormap.from_list("rise", [color for _, color in scale])
    bar = figure.colorbar(ScalarMappable(cmap=colors), ax=panels, fraction=0.03, aspect=30)
    bar.set_ticks([i / (len(scale) - 1) for i in range(len(scale))], labels=[f"{rise:.3f}" for rise, _ in scale])
    bar.ax.tick_params(labelsize=7)
    return figure


def search_progress(data: ReportData) -> Any:
    """Best fitness where there are weights, best feasible quality and hypervolume, over the evaluations."""
    panels = progress_panels(data)
    figure = _figure(4 * len(panels), 3.2)
    for i, (text, score, lines) in enumerate(panels):
        axes = _plain(figure.add_subplot(1, len(panels), i + 1), "evaluations", text, "")
        for n, (target, values) in enumerate(lines.items()):
            numbers = [float("nan") if v is None else v for v in values]
            style = {"color": SERIES[n % len(SERIES)], "marker": "o" if len(values) == 1 else None}
            axes.step(range(1, len(values) + 1), numbers, where="post", label=_plain_text(target), **style)
        _write_decades(axes.yaxis, score)
        if i == 0 and len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _plain_text(text: str) -> str:
    """Keep matplotlib from reading a name as a formula."""
    return text.replace("$", r"\$")


PICTURES: dict[str, Callable[[ReportData], Any]] = {
    "front": front,
    "finalists": finalists,
    "gates": gates,
    "progress": search_progress,
    "sensitivity": sensitivity,
}
