"""The report's interactive figures: one function, one plotly figure, always in the same colors."""

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any

from search.report.data import (
    Entry,
    ReportData,
    is_measured,
    label,
    lookup,
    measured,
    number,
    position,
)
from search.report.grids import summary_lines
from search.report.history import changed_genes

FINALIST, BASELINE, FRONT = "#1d5fbf", "#c2570c", "#1c2430"
CANDIDATE, INFEASIBLE, BUDGET, GRID = "#9aa5b4", "#d3d9e1", "#b42343", "#e8ebef"
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


def _points(figure: Any, entries: Sequence[Entry], place: Callable[[Entry], Any], name: str, **style: Any) -> None:
    """Add the entries whose place is known as one trace."""
    import plotly.graph_objects as go

    texts = style.pop("hover", None) or [None] * len(entries)
    labels = style.pop("labels", None)
    known = [(*place(e), e, text) for e, text in zip(entries, texts, strict=True)]
    known = [point for point in known if point[0] is not None and point[1] is not None]
    if not known:
        return
    figure.add_trace(
        go.Scatter(
            x=[p[0] for p in known],
            y=[p[1] for p in known],
            name=name,
            hovertext=[p[3] for p in known],
            hoverinfo="text" if known[0][3] else "x+y+name",
            text=[escape(labels(p[2])) for p in known] if labels else None,
            **{"mode": "markers", "cliponaxis": False, **style},
        )
    )


def _hover(data: ReportData, entry: Entry) -> str:
    """What the mouse shows: who it is, what it scores, where it comes from, what it is made of."""
    origin = entry.get("lineage") or {}
    parents = ", ".join(map(str, origin.get("parents") or []))
    scores = " · ".join(f"{k} {v:.4g}" for k, v in (entry.get("scores") or {}).items() if number(v) is not None)
    lines = [scores]
    if "operator" in origin:
        lines.append(f"generation {origin.get('generation', '?')}: {origin['operator']}")
        lines[-1] += f" from {parents}" if parents else ""
        changed = changed_genes(entry)
        lines.append(f"{len(changed)} changed: {', '.join(changed[:3])}{' …' * (len(changed) > 3)}" if changed else "")
    if entry.get("genome") is not None:
        lines += summary_lines(data.space, entry["genome"])
    title = entry.get("name") or f"candidate {entry.get('id')}"
    return "<br>".join([f"<b>{escape(str(title))}</b>", *(escape(line) for line in lines if line)])


def front(data: ReportData, target: str) -> Any:
    """All candidates, the front, the finalists, the baselines and the budget."""
    x, y = data.axes
    figure = style_axes(new_figure(480, hovermode="closest"), label(x), f"valid {label(y)}")
    for feasible, name, style in (
        (False, "over budget", {"color": INFEASIBLE, "size": 6}),
        (True, "candidates", {"color": CANDIDATE, "size": 6, "opacity": 0.7}),
    ):
        group = [c for c in data.candidates if bool(c.get("feasible", True)) is feasible]
        hover = [_hover(data, c) for c in group]
        _points(figure, group, partial(position, data), name, hover=hover, marker=style)
    members = sorted(data.front.get(target, []), key=lambda e: position(data, e)[0] or 0)
    _points(
        figure,
        members,
        partial(position, data),
        "front",
        hover=[_hover(data, e) for e in members],
        mode="lines+markers",
        line={"color": FRONT, "width": 1.5},
        marker={"color": FRONT, "size": 6},
    )
    for entries, name, color, symbol in (
        (data.baselines.get(target, []), "baselines", BASELINE, "diamond"),
        (data.finalists.get(target, []), "finalists", FINALIST, "circle"),
    ):
        _points(
            figure,
            entries,
            partial(position, data),
            name,
            hover=[_hover(data, e) for e in entries],
            labels=_short_name,
            mode="markers+text",
            marker={"color": color, "size": 11, "symbol": symbol, "line": {"color": "#ffffff", "width": 1}},
            textposition="top center",
            textfont={"color": color, "size": 11},
        )
    if data.budget is not None:
        _bound(figure, data.budget, f"budget {data.budget:g}")
    return figure


def _short_name(entry: Entry) -> str:
    return str(entry.get("name", entry.get("id"))).removeprefix("finalist ").removeprefix("uniform ")


def _bound(figure: Any, x: float, text: str) -> None:
    line = {"color": BUDGET, "width": 1.5, "dash": "dash"}
    font = {"color": BUDGET, "size": 12}
    place = "top left"
    figure.add_vline(x=x, line=line, annotation={"text": text, "font": font}, annotation_position=place)


def test_loss(data: ReportData, target: str) -> Any:
    """Test loss over size: hollow with inherited weights, filled after fine-tuning."""
    figure = style_axes(new_figure(400, hovermode="closest"), label("size_mb"), "test loss (nats/token)")
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
            _points(
                figure,
                entries,
                place,
                f"{kind}, {shown}",
                hover=[f"{escape(str(e['name']))}, {shown}<br>{_place_text(place(e))}" for e in entries],
                # A name stands once beside each entry: at its last score.
                labels=partial(_last_name, state),
                mode="markers+text",
                marker={"color": fill, "size": 10, "symbol": symbol, "line": {"color": color, "width": 1.5}},
                textposition="bottom center",
                textfont={"color": color, "size": 11},
            )
    if data.budget is not None and data.axes[0] == "size_mb":
        _bound(figure, data.budget, f"budget {data.budget:g}")
    return figure


def _test_place(state: str, entry: Entry) -> tuple[float | None, float | None]:
    return lookup(entry, "scores", "size_mb"), lookup(entry, state, "test_loss")


def _last_name(state: str, entry: Entry) -> str:
    return "" if state == "inherited" and entry.get("fine_tuned") else _short_name(entry)


def _place_text(place: tuple[float | None, float | None]) -> str:
    x, y = place
    return "" if x is None or y is None else f"{x:.3g} MB, test loss {y:.3f}"


def measured_front(data: ReportData, target: str) -> Any:
    """The front again, with the time that was measured on the target in place of the predicted cost."""
    y = data.axes[1]
    members = [e for e in data.front.get(target, []) if is_measured(e) and lookup(e, "scores", y) is not None]
    figure = style_axes(
        new_figure(380, hovermode="closest"), "decode (ms per token; bar: p50 to p95)", f"valid {label(y)}"
    )
    spread = [max(0.0, (measured(e, "decode_p95_ms") or 0) - (measured(e, "decode_ms") or 0)) for e in members]
    sizes = [lookup(e, "scores", "size_mb") for e in members]
    _points(
        figure,
        members,
        lambda e: (measured(e, "decode_ms"), lookup(e, "scores", y)),
        "front member",
        hover=[_hover(data, e) for e in members],
        error_x={
            "array": spread,
            "arrayminus": [0.0] * len(spread),
            "color": CANDIDATE,
            "thickness": 1,
            "width": 0,
        },
        marker={
            "color": sizes,
            "colorscale": [[0, "#c9dbf3"], [1, "#123f80"]],
            "size": 10,
            "colorbar": {
                "title": {"text": "size (MB)", "font": {"size": 13}},
                "thickness": 12,
                "outlinewidth": 0,
            },
        },
        showlegend=False,
    )
    return figure
