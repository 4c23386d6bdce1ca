"""The report's interactive figures: one function, one plotly figure, always in the same colors."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from search.grids import split_name, summary_lines
from search.report_data import (
    Entry,
    ReportData,
    changed_genes,
    label,
    lookup,
    number,
    position,
    progress,
    thin,
)

FINALIST, BASELINE, FRONT = "#1d5fbf", "#c2570c", "#1c2430"
CANDIDATE, INFEASIBLE, BUDGET, GRID = "#9aa5b4", "#d3d9e1", "#b42343", "#e8ebef"
SERIES = ("#1d5fbf", "#c2570c", "#1b7f5c", "#7a4fb5", "#8a6d1f", "#4d5866")
# Cheap choices blue, dear ones red, undecided gates nearly white.
LEANING = ((0.0, "#1d5fbf"), (0.5, "#f4f5f7"), (1.0, "#b42343"))
MAX_POINTS = 1500  # per line: what a laptop redraws without a pause
MAX_GATE_STEPS = 120


def _figure(height: int, **layout: Any) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 24, "t": 44, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 13, "color": FRONT},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "itemsizing": "constant"},
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": "#c5ccd6", "font": {"size": 12}, "align": "left"},
        **layout,
    )
    return figure


def _axes(figure: Any, x: str, y: str) -> Any:
    look = {
        "gridcolor": GRID,
        "linecolor": "#c5ccd6",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "#c5ccd6",
    }
    figure.update_xaxes(title={"text": x, "standoff": 10}, **look)
    figure.update_yaxes(title={"text": y, "standoff": 10}, **look)
    return figure


def _points(
    figure: Any, entries: Sequence[Entry], place: Callable[[Entry], Any], name: str, **style: Any
) -> None:
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
            **{"mode": "markers", **style},
        )
    )


def _hover(data: ReportData, entry: Entry) -> str:
    """What the mouse shows: who it is, what it scores, where it comes from, what it is made of."""
    origin = entry.get("lineage") or {}
    parents = ", ".join(map(str, origin.get("parents") or []))
    scores = " · ".join(
        f"{k} {v:.4g}" for k, v in (entry.get("scores") or {}).items() if number(v) is not None
    )
    lines = [scores]
    if "operator" in origin:
        lines.append(f"generation {origin.get('generation', '?')}: {origin['operator']}")
        lines[-1] += f" from {parents}" if parents else ""
        changed = changed_genes(entry)
        lines.append(
            f"{len(changed)} changed: {', '.join(changed[:3])}{' …' * (len(changed) > 3)}" if changed else ""
        )
    if entry.get("genome") is not None:
        lines += summary_lines(data.space, entry["genome"])
    title = entry.get("name") or f"candidate {entry.get('id')}"
    return "<br>".join([f"<b>{escape(str(title))}</b>", *(escape(line) for line in lines if line)])


def front(data: ReportData, target: str) -> Any:
    """All candidates, the front, the finalists, the baselines and the budget."""
    x, y = data.axes
    figure = _axes(_figure(480, hovermode="closest"), label(x), f"valid {label(y)}")
    for feasible, name, style in (
        (False, "over budget", {"color": INFEASIBLE, "size": 6}),
        (True, "candidates", {"color": CANDIDATE, "size": 6, "opacity": 0.7}),
    ):
        group = [c for c in data.candidates if bool(c.get("feasible", True)) is feasible]
        hover = [_hover(data, c) for c in group]
        _points(figure, group, lambda e: position(data, e), name, hover=hover, marker=style)
    members = sorted(data.front.get(target, []), key=lambda e: position(data, e)[0] or 0)
    _points(
        figure,
        members,
        lambda e: position(data, e),
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
            lambda e: position(data, e),
            name,
            hover=[_hover(data, e) for e in entries],
            labels=_short_name,
            mode="markers+text",
            marker={"color": color, "size": 11, "symbol": symbol, "line": {"color": "#ffffff", "width": 1}},
            textposition="top right",
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
    figure = _axes(_figure(400, hovermode="closest"), label("size_mb"), "test loss (nats per token)")
    for entries, kind, color, symbol in (
        (data.baselines.get(target, []), "baselines", BASELINE, "diamond"),
        (data.finalists.get(target, []), "finalists", FINALIST, "circle"),
    ):
        for before, after in (_before_after(e) for e in entries):
            if before[1] is not None and after[1] is not None:
                line = {"color": color, "width": 1}
                figure.add_shape(type="line", x0=before[0], y0=before[1], x1=after[0], y1=after[1], line=line)
        for i, (name, fill) in enumerate((("inherited", "#ffffff"), ("fine-tuned", color))):
            # A name stands once beside each entry: at its last score.
            last = [e for e in entries if i == 1 or _before_after(e)[1][1] is None]
            rest = [e for e in entries if e not in last]
            for group, mode in ((last, "markers+text"), (rest, "markers")):
                _points(
                    figure,
                    group,
                    lambda e, i=i: _before_after(e)[i],
                    f"{kind}, {name}",
                    hover=[
                        f"{escape(str(e['name']))}, {name}<br>{_place_text(_before_after(e)[i])}"
                        for e in group
                    ],
                    labels=_short_name,
                    mode=mode,
                    legendgroup=f"{kind} {name}",
                    showlegend=group is last or not last,
                    marker={
                        "color": fill,
                        "size": 10,
                        "symbol": symbol,
                        "line": {"color": color, "width": 1.5},
                    },
                    textposition="top right",
                    textfont={"color": color, "size": 11},
                )
    if data.budget is not None and data.axes[0] == "size_mb":
        _bound(figure, data.budget, f"budget {data.budget:g}")
    return figure


def _before_after(entry: Entry) -> list[tuple[float | None, float | None]]:
    size = lookup(entry, "scores", "size_mb")
    return [(size, lookup(entry, state, "test_loss")) for state in ("inherited", "fine_tuned")]


def _place_text(place: tuple[float | None, float | None]) -> str:
    return (
        f"{place[0]:.3g} MB, test loss {place[1]:.3f}"
        if place[0] is not None and place[1] is not None
        else ""
    )


def measured_front(data: ReportData, target: str) -> Any:
    """The front again, with the time that was measured on the target in place of the predicted cost."""
    y = data.axes[1]
    members = [e for e in data.front.get(target, []) if is_measured(e) and lookup(e, "scores", y) is not None]
    figure = _axes(
        _figure(380, hovermode="closest"), "decode (ms per token; bar: p50 to p95)", f"valid {label(y)}"
    )
    spread = [
        max(0.0, (lookup(e, "measured", "decode_ms_p95") or 0) - e["measured"]["decode_ms_p50"])
        for e in members
    ]
    sizes = [lookup(e, "scores", "size_mb") for e in members]
    _points(
        figure,
        members,
        lambda e: (lookup(e, "measured", "decode_ms_p50"), lookup(e, "scores", y)),
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
            "colorbar": {"title": {"text": "size (MB)"}, "thickness": 12, "outlinewidth": 0},
        },
        showlegend=False,
    )
    return figure


def search_progress(data: ReportData) -> Any:
    """Best feasible score and hypervolume over the evaluations."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    name = data.axes[1]
    running = progress(data)
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    figure.update_layout(_figure(320, showlegend=False, hovermode="x unified").layout)
    steps = thin(len(running.best), MAX_POINTS)
    for column, (values, color) in enumerate(
        ((running.best, FINALIST), (running.hypervolume, SERIES[2])), start=1
    ):
        line = {"color": color, "width": 2, "shape": "hv"}
        x = [i + 1 for i in steps]
        mode = "lines" if len(steps) > 1 else "markers"
        trace = go.Scatter(x=x, y=[values[i] for i in steps], line=line, marker={"color": color}, mode=mode)
        figure.add_trace(trace, row=1, col=column)
    _axes(figure, "evaluations", "")
    figure.update_yaxes(title_text=f"best feasible valid {label(name)}", col=1)
    figure.update_yaxes(title_text="hypervolume (share of the box)", rangemode="tozero", col=2)
    return figure


def gate_leaning(
    data: ReportData, budget: int
) -> tuple[list[int], list[str], list[list[float]], list[list[str]]]:
    """Return (steps, genes, leaning, text) of one budget's gates; leaning and text are per gene and step.

    A gate's leaning is the expected position of its choice: 0 the cheapest, 1 the dearest. Genes are ordered
    by what they decide, then by layer, so that the layers of one decision lie next to each other.
    """
    all_steps = data.gates["history"]
    history = [all_steps[i] for i in thin(len(all_steps), MAX_GATE_STEPS)]
    choices = {gene.name: gene.choices for gene in data.space}
    open_genes = [(i, name) for i, name in enumerate(data.gates["genes"]) if len(choices.get(name, ())) > 1]
    first_seen = list(dict.fromkeys(split_name(name)[1] for _, name in open_genes))
    open_genes.sort(key=lambda item: first_seen.index(split_name(item[1])[1]))
    leaning, texts = [], []
    for i, name in open_genes:
        rows = [record["probabilities"][budget][i] for record in history]
        leaning.append([sum(j * p for j, p in enumerate(row)) / (len(row) - 1) for row in rows])
        texts.append(
            [", ".join(f"{c} {p:.0%}" for c, p in zip(choices[name], row, strict=True)) for row in rows]
        )
    return [record["step"] for record in history], [name for _, name in open_genes], leaning, texts


def gates(data: ReportData) -> Any:
    """One heat map per budget: genes × steps, colored by where the gate leans."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    budgets = data.gates["budgets_mb"]
    n_genes = len(gate_leaning(data, 0)[1])
    height = 110 + max(6, n_genes) * (15 if n_genes <= 90 else 8)
    titles = [f"budget {budget:g} MB" for budget in budgets]
    figure = make_subplots(
        rows=1, cols=len(budgets), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.02
    )
    figure.update_layout(_figure(height).layout, margin_l=190)
    for column in range(len(budgets)):
        steps, genes, leaning, texts = gate_leaning(data, column)
        trace = go.Heatmap(
            x=steps,
            y=[escape(name) for name in genes],
            z=leaning,
            text=texts,
            hovertemplate="%{y}, step %{x}<br>%{text}<extra></extra>",
            coloraxis="coloraxis",
        )
        figure.add_trace(trace, row=1, col=column + 1)
    _axes(figure, "training step", "")
    figure.update_yaxes(autorange="reversed", tickfont={"size": 11}, showgrid=False)
    bar = {
        "tickvals": [0, 0.5, 1],
        "ticktext": ["cheapest", "", "dearest"],
        "thickness": 12,
        "outlinewidth": 0,
    }
    figure.update_layout(
        coloraxis={"colorscale": LEANING, "cmin": 0, "cmax": 1, "colorbar": {**bar, "len": 0.5}}
    )
    return figure


def expected_size(data: ReportData) -> Any:
    """Expected size of each budget's gates over training, against the budget."""
    import plotly.graph_objects as go

    history = data.gates["history"]
    records = [history[i] for i in thin(len(history), MAX_POINTS)]
    figure = _axes(_figure(320, hovermode="x unified"), "training step", "expected size (MB)")
    for i, budget in enumerate(data.gates["budgets_mb"]):
        color = SERIES[i % len(SERIES)]
        y = [record["expected_mb"][i] for record in records]
        mode = "lines" if len(records) > 1 else "markers"
        line = {"color": color, "width": 2}
        name = f"gates for {budget:g} MB"
        figure.add_trace(go.Scatter(x=[r["step"] for r in records], y=y, name=name, line=line, mode=mode))
        figure.add_hline(y=budget, line={"color": color, "width": 1, "dash": "dash"})
    return figure


def training(data: ReportData) -> Any:
    """Losses of the sampled nets over training, the phases behind them."""
    import plotly.graph_objects as go

    figure = _axes(_figure(380, hovermode="x unified"), "training step", "train loss (nats per token)")
    steps = data.metrics["step"]
    for i, name in enumerate(name for name in data.metrics if name.startswith("loss")):
        known = [(x, y) for x, y in zip(steps, data.metrics[name], strict=True) if y is not None]
        points = [known[j] for j in thin(len(known), MAX_POINTS)]
        if points:
            line = {"color": SERIES[i % len(SERIES)], "width": 1.5}
            shown = name.removeprefix("loss_").replace("_", " ")
            mode = "lines" if len(points) > 1 else "markers"
            x, y = zip(*points, strict=True)
            figure.add_trace(go.Scatter(x=x, y=y, name=shown, line=line, mode=mode))
    starts = [i for i, phase in enumerate(data.phases) if i == 0 or phase != data.phases[i - 1]]
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], len(steps) - 1], strict=True)):
        note = {"text": escape(data.phases[start]), "font": {"size": 11, "color": "#5a6675"}}
        shade = {"fillcolor": "#eef1f5" if n % 2 else "#ffffff", "layer": "below", "line_width": 0}
        place = "inside bottom left"
        figure.add_vrect(x0=steps[start], x1=steps[end], annotation=note, annotation_position=place, **shade)
    return figure
