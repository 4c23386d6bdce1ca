"""The report's interactive figures: one function, one plotly figure, always in the same colors."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from typing import Any

from search.entries import ships_tuned
from search.report.ancestry import changes
from search.report.data import Entry, ReportData, lookup, number
from search.report.grids import summary_lines
from search.report.labels import Canvas, Point, places
from search.report.nets import short_name, size_of
from search.report.scores import (
    DECADES,
    axes,
    bounds,
    feasible,
    is_quality,
    label,
    logarithmic,
    objectives,
    on_axis,
    position,
)

FINALIST, BASELINE, FRONT = "#1d5fbf", "#c2570c", "#1c2430"
CANDIDATE, INFEASIBLE, BUDGET, GRID = "#9aa5b4", "#d3d9e1", "#b42343", "#e8ebef"
NAME_SIZE, USUAL_WIDTH, BESIDE_AXES = 11, 1000, 96  # px: of names, of a picture in a wide window, of its margins
Named = tuple[Point, str, str]  # a point, its name and its color
SERIES = ("#1d5fbf", "#c2570c", "#1b7f5c", "#7a4fb5", "#8a6d1f", "#4d5866")


def look(height: int, **layout: Any) -> dict[str, Any]:
    """Return the layout that all figures share."""
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 64, "r": 24, "t": 44, "b": 52},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": FRONT},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "itemsizing": "constant"},
        "hoverlabel": {
            "bgcolor": "#ffffff",
            "bordercolor": "#c5ccd6",
            "font": {"size": 12},
            "align": "left",
        },
        **layout,
    }


def new_figure(height: int, **layout: Any) -> Any:
    """Return an empty figure in the report's look."""
    import plotly.graph_objects as go

    return go.Figure(layout=look(height, **layout))


def style_axes(figure: Any, x: str, y: str) -> Any:
    """Name the axes and give them the report's look; returns the figure."""
    style = {
        "gridcolor": GRID,
        "linecolor": "#c5ccd6",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "#c5ccd6",
    }
    figure.update_xaxes(title={"text": x, "standoff": 10, "font": {"size": 13}}, **style)
    figure.update_yaxes(title={"text": y, "standoff": 10, "font": {"size": 13}}, **style)
    return figure


def write_decades(figure: Any, axis: str, score: str, **subplot: Any) -> None:
    """Write the values beside an axis that shows their logarithms; `axis` is x or y."""
    if logarithmic(score):
        update = figure.update_xaxes if axis == "x" else figure.update_yaxes
        update(tickvals=list(DECADES), ticktext=[f"{10.0**decade:g}" for decade in DECADES], **subplot)


def known(place: tuple[float | None, float | None]) -> Point | None:
    """Return a place as a point, None where a part of it is not known."""
    x, y = place
    return None if x is None or y is None else (x, y)


def points_of(entries: Iterable[Entry], place: Callable[[Entry], Any]) -> list[Point]:
    """Return the points of the entries whose place is known."""
    return [point for entry in entries if (point := known(place(entry))) is not None]


def add_points(figure: Any, entries: Sequence[Entry], place: Callable[[Entry], Any], name: str, **style: Any) -> None:
    """Add the entries whose place is known as one trace."""
    import plotly.graph_objects as go

    texts = style.pop("hover", None) or [None] * len(entries)
    subplot = {key: style.pop(key) for key in ("row", "col") if key in style}
    shown = [(point, text) for e, text in zip(entries, texts, strict=True) if (point := known(place(e))) is not None]
    if not shown:
        return
    figure.add_trace(
        go.Scatter(
            x=[point[0] for point, _ in shown],
            y=[point[1] for point, _ in shown],
            name=name,
            hovertext=[text for _, text in shown],
            hoverinfo="text" if shown[0][1] else "x+y+name",
            **{"mode": "markers", "cliponaxis": False, **style},
        ),
        **subplot,
    )


def add_names(figure: Any, named: Sequence[Named], canvas: Canvas, marks: Sequence[Point], **subplot: Any) -> None:
    """Write names beside their points, where they cover neither each other nor, if there is room, a mark."""
    found = places(canvas, [point for point, _, _ in named], [name for _, name, _ in named], marks)
    for (point, name, color), place in zip(named, found, strict=True):
        line = {"ax": place.x, "ay": -place.y, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": color, "standoff": 6}
        near = {"xshift": place.x, "yshift": place.y}
        figure.add_annotation(
            x=point[0],
            y=point[1],
            text=escape(name),
            font={"color": color, "size": canvas.font},
            showarrow=place.apart,
            **(line if place.apart else near),
            **subplot,
        )


def hover_text(data: ReportData, entry: Entry, brief: bool = False) -> str:
    """What the mouse shows: who it is, what it scores, where it comes from and, unless brief, what it is made of."""
    origin = entry.get("lineage") or {}
    parents = ", ".join(map(str, origin.get("parents") or []))
    scores = " · ".join(f"{k} {v:.4g}" for k, v in (entry.get("scores") or {}).items() if number(v) is not None)
    lines = [scores]
    if "operator" in origin:
        lines.append(f"generation {origin.get('generation', '?')}: {origin['operator']}")
        lines[-1] += f" from {parents}" if parents else ""
        changed = list(map(str, changes(data.space, data.by_id, entry)))
        lines.append(f"{len(changed)} changed: {', '.join(changed[:3])}{' …' * (len(changed) > 3)}" if changed else "")
    if entry.get("genome") is not None and not brief:
        lines += summary_lines(data.space, entry["genome"])
    title = entry.get("name") or f"candidate {entry.get('id')}"
    return "<br>".join([f"<b>{escape(str(title))}</b>", *(escape(line) for line in lines if line)])


def front(data: ReportData, target: str) -> Any:
    """All candidates, the front, the finalists, the baselines and the budgets."""
    x, y = axes(data, target)
    figure = style_axes(new_figure(480, hovermode="closest"), label(x), label(y))
    _add_front(figure, data, target, (x, y), (USUAL_WIDTH, figure.layout.height - BESIDE_AXES))
    return figure


def further_objectives(data: ReportData, target: str) -> Any | None:
    """The front again, over each objective that its picture leaves out; None where there is none."""
    from plotly.subplots import make_subplots

    x, y = axes(data, target)
    # A cost stands below the quality; a second quality stands beside the cost.
    planes = [(x, name) if is_quality(name) else (name, y) for name in objectives(data, target) if name not in (x, y)]
    if not planes:
        return None
    columns = min(2, len(planes))
    rows = -(-len(planes) // columns)
    figure = make_subplots(rows=rows, cols=columns, horizontal_spacing=0.1, vertical_spacing=0.18 / rows)
    figure.update_layout(look(60 + 340 * rows, hovermode="closest"))
    style_axes(figure, "", "")
    for i, plane in enumerate(planes):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        size = USUAL_WIDTH / columns, 340 - BESIDE_AXES
        _add_front(figure, data, target, plane, size, showlegend=i == 0, **place)
        figure.update_xaxes(title_text=label(plane[0]), **place)
        figure.update_yaxes(title_text=label(plane[1]), **place)
    return figure


def _add_front(figure: Any, data: ReportData, target: str, plane: tuple[str, str], size: Point, **options: Any) -> None:
    """Draw everything there is over two scores; `size` in px, `options` name the subplot."""
    where, fits = partial(position, data, plane), feasible(data, target)
    brief = "row" in options  # the first picture says it all; a second copy would double the page
    for inside, name, style in (
        (False, "over budget", {"color": INFEASIBLE, "size": 6}),
        (True, "candidates", {"color": CANDIDATE, "size": 6, "opacity": 0.7}),
    ):
        group = [c for c in data.whole if (c["id"] in fits) is inside]
        hover = [hover_text(data, c, brief) for c in group]
        add_points(figure, group, where, name, hover=hover, marker=style, legendgroup=name, **options)
    members = sorted(data.front.get(target, []), key=lambda e: where(e)[0] or 0)
    # Members that a third objective keeps on the front would make a line jump.
    flat = set(objectives(data, target)) <= set(plane)
    add_points(
        figure,
        members,
        where,
        "front",
        hover=[hover_text(data, e) for e in members],
        mode="lines+markers" if flat else "markers",
        line={"color": FRONT, "width": 1.5},
        marker={"color": FRONT, "size": 6},
        legendgroup="front",
        **options,
    )
    named: list[Named] = []
    for entries, name, color, symbol in (
        (data.baselines.get(target, []), "baselines", BASELINE, "diamond"),
        (data.finalists.get(target, []), "finalists", FINALIST, "circle"),
    ):
        add_points(
            figure,
            entries,
            where,
            name,
            hover=[hover_text(data, e) for e in entries],
            marker={"color": color, "size": 11, "symbol": symbol, "line": {"color": "#ffffff", "width": 1}},
            legendgroup=name,
            **options,
        )
        named += [(point, short_name(e), color) for e in entries if (point := known(where(e))) is not None]
    subplot = {key: options[key] for key in ("row", "col") if key in options}
    marks = points_of(members, where)
    drawn = [*points_of(data.whole, where), *marks, *(point for point, _, _ in named)]
    add_names(figure, named, Canvas(drawn, size, NAME_SIZE), marks, **subplot)
    for axis, score in zip("xy", plane, strict=True):
        write_decades(figure, axis, score, **subplot)
        if score in bounds(data, target):
            bound = bounds(data, target)[score]
            _bound(figure, axis, on_axis(score, bound), f"{bound:g}", **subplot)


def _bound(figure: Any, axis: str, place: float, value: str, **subplot: Any) -> None:
    """Draw a budget across the picture; `axis` is x or y."""
    style = {
        "line": {"color": BUDGET, "width": 1.5, "dash": "dash"},
        "annotation": {"text": f"budget {value}", "font": {"color": BUDGET, "size": 12}},
        "annotation_position": "top left",
    }
    (figure.add_vline if axis == "x" else figure.add_hline)(**{axis: place}, **style, **subplot)


def test_loss(data: ReportData, target: str) -> Any:
    """Test loss over size: hollow with inherited weights, filled after fine-tuning."""
    figure = style_axes(new_figure(400, hovermode="closest"), label("size_mb"), "test loss (nats/token)")
    named: list[Named] = []
    marks: list[Point] = []
    for entries, kind, color, symbol in (
        (data.baselines.get(target, []), "baselines", BASELINE, "diamond"),
        (data.finalists.get(target, []), "finalists", FINALIST, "circle"),
    ):
        for before, after in ((_test_place("inherited", e), _test_place("fine_tuned", e)) for e in entries):
            if before[1] is not None and after[1] is not None:
                line = {"color": color, "width": 1}
                figure.add_shape(type="line", x0=before[0], y0=before[1], x1=after[0], y1=after[1], line=line)
        for state, fill in (("inherited", "#ffffff"), ("fine_tuned", color)):
            place, shown = partial(_test_place, state), state.replace("_", "-")
            add_points(
                figure,
                entries,
                place,
                f"{kind}, {shown}",
                hover=[f"{escape(str(e['name']))}, {shown}<br>{_place_text(place(e))}" for e in entries],
                marker={"color": fill, "size": 10, "symbol": symbol, "line": {"color": color, "width": 1.5}},
            )
            marks += points_of(entries, place)
        for entry in entries:  # a name stands once beside each: at the score of what ships
            state = "fine_tuned" if ships_tuned(entry) else "inherited"
            point = known(_test_place(state, entry))
            named += [(point, short_name(entry), color)] if point is not None else []
    canvas = Canvas(marks, (USUAL_WIDTH, figure.layout.height - BESIDE_AXES), NAME_SIZE)
    add_names(figure, named, canvas, marks)
    if "size_mb" in bounds(data, target):
        size_mb = bounds(data, target)["size_mb"]
        _bound(figure, "x", size_mb, f"{size_mb:g}")
    return figure


def _test_place(state: str, entry: Entry) -> tuple[float | None, float | None]:
    return size_of(entry), lookup(entry, state, "test_loss")


def _place_text(place: tuple[float | None, float | None]) -> str:
    x, y = place
    return "" if x is None or y is None else f"{x:.3g} MB, test loss {y:.3f}"
