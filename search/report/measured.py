"""The report's section about cost on a target: measured, predicted, and how far the two are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from search.report import figures_measured
from search.report.data import Entry, ReportData, lookup, number
from search.report.hardware import add_hardware
from search.report.html import Column, Page, Row, table
from search.report.nets import is_measured, measured, nets_of, predicted, size_of
from search.report.scores import axes, base, digits, label, scores_on

COSTS = ("file_mb", "ttft_ms", "decode_ms", "decode_p95_ms", "peak_memory_mb", "kv_bytes_per_token")
NOT_INSTALLED = (
    "the runtime is not installed, which adds latency, memory and sample text: "
    "<code>pip install -e '.[gguf]'</code> for llama.cpp, <code>'.[nf4]'</code> for bitsandbytes"
)


@dataclass(frozen=True)
class Costs:
    """Which costs of a target there are to show.

    Attributes:
        predicted: those that a hardware model predicted.
        measured: those that were measured.
    """

    predicted: Sequence[str]
    measured: Sequence[str]

    @property
    def columns(self) -> list[Column]:
        """Heads of the costs in a table."""
        groups = (("predicted", self.predicted), ("measured" if self.predicted else "", self.measured))
        return [Column(label(cost), digits(cost), group) for group, costs in groups for cost in costs]

    def values(self, entry: Entry) -> list[float | None]:
        """Return what stands in these columns."""
        return [
            *(predicted(entry, cost) for cost in self.predicted),
            *(measured(entry, cost) for cost in self.measured),
        ]


def add_measured(page: Page, data: ReportData, target: str) -> None:
    """Add cost of finalists and baselines, the predictions held against it, and the front measured."""
    nets, members = nets_of(data, target), data.front.get(target, [])
    everything = [*members, *(entry for entry, _ in nets)]
    timed = any(is_measured(e) for e in everything)
    guessed = [cost for cost in COSTS if any(predicted(e, cost) is not None for e in everything)]
    costs = Costs(guessed, COSTS if timed or not guessed else ())
    add_hardware(page, data, target)
    if not timed:
        _say_why(page, data, target, everything)
    for entry, _ in nets:
        ran = entry.get("measured") or {}
        if ran.get("reason"):
            what = "was measured, but failed to score or write text" if ran.get("built") else "did not run"
            page.add(f'<p class="missing">{escape(str(entry["name"]))} {what}: {escape(str(ran["reason"]))}</p>')
    prompts = {measured(e, "prefill_tokens") for e in everything} - {None}
    prompt = f" for a prompt of {', '.join(f'{n:g}' for n in sorted(filter(None, prompts)))} tokens" if prompts else ""
    rows = [Row([entry["name"], size_of(entry), *costs.values(entry)], kind) for entry, kind in nets]
    page.add(
        "<h3>Cost of finalists and baselines</h3>",
        table([Column("net"), Column("size (MB)", 3), *costs.columns], rows, sorted_by=1),
        f'<p class="note">TTFT: time to the first token{prompt}. MB are 10⁶ bytes.</p>',
    )
    _add_predictions(page, data, target)
    if members:
        _add_front(page, data, target, costs)


def _add_front(page: Page, data: ReportData, target: str, costs: Costs) -> None:
    members = data.front[target]
    if any(is_measured(e) for e in members):
        page.add("<h3>The front, measured</h3>")
        page.figure(
            figures_measured.measured_front(data, target), "A front that keeps its shape here was predicted well."
        )
    else:
        page.add("<h3>The front in numbers</h3>")
    # What the hardware model predicts is a score already, and need not stand there twice.
    scores = [name for name in scores_on(data, target) if base(name) not in costs.predicted]
    columns = [Column("id", 0), *(Column(label(name), digits(name), "search scores") for name in scores)]
    rows = [[e["id"], *(lookup(e, "scores", name) for name in scores), *costs.values(e)] for e in members]
    x = axes(data, target)[0]
    first = scores.index(x) + 1 if x in scores else 0
    rows.sort(key=lambda values: number(values[first]) or 0)
    whole = table([*columns, *costs.columns], [Row(values) for values in rows], sorted_by=first)
    page.add(f'<div class="tall">{whole}</div>')


def _say_why(page: Page, data: ReportData, target: str, everything: Sequence[Entry]) -> None:
    elsewhere = data.settings.get(f"targets.{target}.hardware")
    if elsewhere:
        text = (
            f"{escape(target)} was measured on another device ({escape(str(elsewhere))}): costs are "
            "predicted by the model fitted there, and none was measured on this machine"
        )
    elif all(not e.get("measured") for e in everything):
        text = NOT_INSTALLED
    else:
        return  # it was tried, and the reasons follow
    page.add(f'<p class="missing">{text}.</p>')


def _add_predictions(page: Page, data: ReportData, target: str) -> None:
    figure = figures_measured.predictions(data, target)
    if figure is None:
        return
    page.add("<h3>Predicted against measured</h3>")
    page.figure(figure, "On the line: as predicted. Shaded: within 5 %.")
    columns = [
        Column("cost"),
        Column("nets", 0),
        Column("mean absolute error", 1, percent=True),
        Column("mean error", 1, percent=True),
        Column("largest", 1, percent=True),
    ]
    rows = []
    for cost in COSTS:
        off = [said / was - 1 for _, said, was in figures_measured.pairs(data.front.get(target, []), cost)]
        if off:
            mean = sum(map(abs, off)) / len(off)
            rows.append(Row([label(cost), len(off), mean, sum(off) / len(off), max(map(abs, off))]))
    if rows:
        note = (
            "Over the measured members of the front, relative to what was measured; positive: the model expected more."
        )
        page.add(table(columns, rows), f'<p class="note">{note}</p>')
