"""The report's figures about what was measured on a target, and how well it was predicted."""

from functools import partial
from html import escape
from typing import Any

from search.report.data import Entry, ReportData, lookup
from search.report.figures import (
    BASELINE,
    CANDIDATE,
    FINALIST,
    FRONT,
    add_points,
    hover_text,
    look,
    new_figure,
    style_axes,
)
from search.report.nets import is_measured, measured, predicted, size_of
from search.report.scores import axes, digits, label

COMPARED = ("decode_ms", "ttft_ms", "peak_memory_mb")  # each a picture of predicted against measured
BAND = 0.05  # what a prediction may be off, drawn around the diagonal


def measured_front(data: ReportData, target: str) -> Any:
    """The front again, with the time that was measured on the target in place of the predicted cost."""
    y = axes(data, target)[1]
    members = [e for e in data.front.get(target, []) if is_measured(e) and lookup(e, "scores", y) is not None]
    figure = style_axes(new_figure(380, hovermode="closest"), "decode (ms per token; bar: p50 to p95)", label(y))
    sizes = [size_of(e) for e in members]
    spread = [max(0.0, (measured(e, "decode_p95_ms") or 0) - (measured(e, "decode_ms") or 0)) for e in members]
    add_points(
        figure,
        members,
        lambda e: (measured(e, "decode_ms"), lookup(e, "scores", y)),
        "front member",
        hover=[hover_text(data, e) for e in members],
        error_x={
            "array": spread,
            "arrayminus": [0.0] * len(spread),
            "color": CANDIDATE,
            "thickness": 1,
            "width": 0,
        },
        marker={
            "color": FRONT if None in sizes else sizes,
            "colorscale": [[0, "#c9dbf3"], [1, "#123f80"]],
            "size": 10,
            "showscale": None not in sizes,
            "colorbar": {
                "title": {"text": "size (MB)", "font": {"size": 13}},
                "thickness": 12,
                "outlinewidth": 0,
            },
        },
        showlegend=False,
    )
    return figure


def pairs(entries: list[Entry], cost: str) -> list[tuple[Entry, float, float]]:
    """Return (entry, predicted, measured) of the entries that have both of a cost."""
    both = [(e, predicted(e, cost), measured(e, cost)) for e in entries]
    return [(e, said, was) for e, said, was in both if said is not None and was]


def predictions(data: ReportData, target: str) -> Any | None:
    """Predicted against measured costs, with the diagonal and a band around it; None where nothing has both."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    groups = (
        ("front", data.front.get(target, []), FRONT, "circle"),
        ("baselines", data.baselines.get(target, []), BASELINE, "diamond"),
        ("finalists", data.finalists.get(target, []), FINALIST, "circle"),
    )
    every = [entry for _, entries, _, _ in groups for entry in entries]
    costs = [cost for cost in COMPARED if pairs(every, cost)]
    if not costs:
        return None
    figure = make_subplots(rows=1, cols=len(costs), horizontal_spacing=0.08)
    figure.update_layout(look(380, hovermode="closest"))
    style_axes(figure, "", "")
    for column, cost in enumerate(costs, start=1):
        values = [value for _, said, was in pairs(every, cost) for value in (said, was)]
        low, high = min(values) * 0.93, max(values) * 1.07
        corners = [low, high, high, low]
        limits = [low * (1 - BAND), high * (1 - BAND), high * (1 + BAND), low * (1 + BAND)]
        band = {"fill": "toself", "fillcolor": "rgba(29,95,191,0.10)", "line": {"width": 0}, "hoverinfo": "skip"}
        shown = {"showlegend": column == 1, "mode": "lines"}
        figure.add_trace(go.Scatter(x=corners, y=limits, name=f"within {BAND:.0%}", **band, **shown), 1, column)
        diagonal = {"line": {"color": CANDIDATE, "width": 1}, "hoverinfo": "skip", "mode": "lines"}
        figure.add_trace(go.Scatter(x=[low, high], y=[low, high], showlegend=False, **diagonal), 1, column)
        for name, entries, color, symbol in groups:
            found = pairs(entries, cost)
            add_points(
                figure,
                [e for e, _, _ in found],
                partial(_pair_place, cost),
                name,
                hover=[_pair_text(e, cost, said, was) for e, said, was in found],
                marker={"color": color, "size": 8, "symbol": symbol, "line": {"color": "#ffffff", "width": 1}},
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text=f"measured {label(cost)}", range=[low, high], row=1, col=column)
        figure.update_yaxes(title_text="predicted" if column == 1 else "", range=[low, high], row=1, col=column)
    return figure


def _pair_place(cost: str, entry: Entry) -> tuple[float | None, float | None]:
    return measured(entry, cost), predicted(entry, cost)


def _pair_text(entry: Entry, cost: str, said: float, was: float) -> str:
    name = escape(str(entry.get("name") or f"candidate {entry.get('id')}"))
    n = digits(cost)
    return f"<b>{name}</b><br>predicted {said:.{n}f}, measured {was:.{n}f} ({said / was - 1:+.1%})"
