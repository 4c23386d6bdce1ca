"""The report's figures over time: the search, the gates, the training of the supernet."""

from html import escape
from typing import Any

from search.report.data import ReportData, thin
from search.report.figures import SERIES, look, new_figure, style_axes, write_decades
from search.report.grids import split_name
from search.report.history import progress
from search.report.scores import axes, label, logarithmic, weights

# Cheap choices blue, dear ones red, undecided gates nearly white.
LEANING = ((0.0, "#1d5fbf"), (0.5, "#f4f5f7"), (1.0, "#b42343"))
EXPECTED = {"MB": "expected size (MB)", "ms": "expected time (ms/token)"}
MAX_POINTS = 1500  # per line: what a laptop redraws without a pause
MAX_GATE_STEPS = 120
MAX_BANDS = 12


def search_progress(data: ReportData) -> Any:
    """Best fitness where there are weights, best feasible quality and hypervolume, over the evaluations."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    panels = progress_panels(data)
    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.09)
    figure.update_layout(look(340, hovermode="x unified", showlegend=len(data.targets) > 1))
    style_axes(figure, "evaluations", "")
    for column, (text, score, lines) in enumerate(panels, start=1):
        for i, (target, values) in enumerate(lines.items()):
            steps = thin(len(values), MAX_POINTS)
            color = SERIES[i % len(SERIES)]
            drawn = [values[step] for step in steps]
            texts = [None if v is None else f"{10.0**v:.4g}" for v in drawn] if logarithmic(score) else None
            trace = go.Scatter(
                x=[step + 1 for step in steps],
                y=drawn,
                hovertext=texts,
                hoverinfo="x+text+name" if texts else "all",
                name=escape(target),
                legendgroup=target,
                showlegend=column == 1,
                line={"color": color, "width": 2, "shape": "hv"},
                marker={"color": color},
                mode="lines" if len(steps) > 1 else "markers",
            )
            figure.add_trace(trace, row=1, col=column)
        figure.update_yaxes(title_text=text, col=column)
        write_decades(figure, "y", score, col=column)
    figure.update_yaxes(rangemode="tozero", col=len(panels))
    return figure


def progress_panels(data: ReportData) -> list[tuple[str, str, dict[str, list[float | None]]]]:
    """Return (title, score whose axis it has, target -> values after each evaluation) of each panel of the progress.

    Hypervolume is last.
    """
    running = {target: progress(data, target) for target in data.targets}
    panels = [("best fitness", "", {target: p.fitness for target, p in running.items()})] if weights(data) else []
    quality = axes(data, data.targets[0])[1]
    panels.append((f"best {label(quality)}", quality, {target: p.best for target, p in running.items()}))
    panels.append(("hypervolume (share of the box)", "", {target: p.hypervolume for target, p in running.items()}))
    return panels


def gate_leaning(data: ReportData, budget: int) -> tuple[list[int], list[str], list[list[float]], list[list[str]]]:
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
        texts.append([", ".join(f"{c} {p:.0%}" for c, p in zip(choices[name], row, strict=True)) for row in rows])
    return [record["step"] for record in history], [name for _, name in open_genes], leaning, texts


def gates(data: ReportData) -> Any:
    """One heat map per budget: genes × steps, colored by where the gate leans."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    n_sets, n_genes = len(data.gate_sets), len(gate_leaning(data, 0)[1])
    height = 110 + max(6, n_genes) * (15 if n_genes <= 90 else 8)
    titles = [f"budget {gates.name}" for gates in data.gate_sets]
    figure = make_subplots(rows=1, cols=n_sets, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.02)
    figure.update_layout(look(height), margin_l=190)
    for column in range(n_sets):
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
    style_axes(figure, "training step", "")
    figure.update_yaxes(autorange="reversed", tickfont={"size": 11}, showgrid=False)
    bar = {
        "tickvals": [0, 0.5, 1],
        "ticktext": ["cheapest", "", "dearest"],
        "thickness": 12,
        "outlinewidth": 0,
    }
    figure.update_layout(coloraxis={"colorscale": LEANING, "cmin": 0, "cmax": 1, "colorbar": {**bar, "len": 0.5}})
    return figure


def expected_cost(data: ReportData, unit: str) -> Any:
    """Expected size (unit MB) or time (ms) of each set of gates over training, against its budget."""
    import plotly.graph_objects as go

    history = data.gates["history"]
    shown = thin(len(history), MAX_POINTS)
    figure = style_axes(new_figure(320, hovermode="x unified"), "training step", EXPECTED[unit])
    for i, gates in enumerate(data.gate_sets):
        if gates.unit != unit:
            continue
        color = SERIES[i % len(SERIES)]
        trace = go.Scatter(
            x=[history[k]["step"] for k in shown],
            y=[gates.expected[k] for k in shown],
            name=f"gates for {gates.name}",
            line={"color": color, "width": 2},
            mode="lines" if len(shown) > 1 else "markers",
        )
        figure.add_trace(trace)
        figure.add_hline(y=gates.budget, line={"color": color, "width": 1, "dash": "dash"})
    return figure


def training(data: ReportData) -> Any:
    """Losses of the sampled nets over training, the phases behind them."""
    import plotly.graph_objects as go

    figure = style_axes(new_figure(380, hovermode="x unified"), "training step", "train loss (nats/token)")
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
    if len(starts) > MAX_BANDS:
        starts = []  # phases that alternate from row to row are no bands
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], len(steps) - 1][: len(starts)], strict=True)):
        note = {"text": escape(data.phases[start]), "font": {"size": 11, "color": "#5a6675"}}
        shade = {"fillcolor": "#eef1f5" if n % 2 else "#ffffff", "layer": "below", "line_width": 0}
        place = "inside bottom left"
        figure.add_vrect(x0=steps[start], x1=steps[end], annotation=note, annotation_position=place, **shade)
    return figure
