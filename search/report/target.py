"""The report's sections about one target: front, finalists, measured cost, architectures, usage."""

from html import escape

from search.entries import shipped
from search.report import figures
from search.report.data import Entry, ReportData, lookup
from search.report.grids import grid, grid_html
from search.report.html import Column, Page, Row, format_number, table
from search.report.lineage import add_lineage
from search.report.measured import COSTS, add_measured
from search.report.nets import (
    begun_with_original,
    best_finalist,
    hardest_hit,
    is_original,
    measured,
    nets_of,
    perplexity,
    predicted,
    size_of,
    uncut,
)
from search.report.scores import base, budgets, digits, objectives, weights, words
from search.report.usage import add_usage

SPLITS = ("valid", "test")


def headline(data: ReportData, target: str, entry: Entry) -> str:
    """Return a net in one line: name, size, what else was asked of it, test loss of the shipped weights."""
    size = size_of(entry)
    parts = [f"{format_number(size, 2 if size is None or size >= 1 else 3)} MB"]
    asked = {*map(base, objectives(data, target)), *budgets(data), *weights(data)}
    for cost in (cost for cost in COSTS if cost in asked):
        seen, said = measured(entry, cost), predicted(entry, cost)
        if seen is not None or said is not None:
            name, unit = words(cost)
            amount = f"{format_number(said if seen is None else seen, digits(cost))} {unit}"
            parts.append(f"{name} {amount}{' (predicted)' if seen is None else ''}")
    return f"{entry['name']}: {', '.join(parts)}, test loss {format_number(lookup(shipped(entry), 'test_loss'), 3)}"


def add_target(page: Page, data: ReportData, target: str) -> None:
    """Add the sections of one target."""
    several = len(data.targets) > 1
    page.section(f"Front on {target}", f"{target}: front" if several else "Front")
    page.figure(
        figures.front(data, target),
        "Each point is a net with inherited weights. Hover for its origin and architecture; drag to zoom.",
    )
    others = figures.further_objectives(data, target)
    if others is not None:
        page.add("<h3>The same front over the other objectives</h3>")
        page.figure(others, "A point that looks dominated in one picture is on the front for another.")
    page.section(f"Finalists against baselines on {target}", f"{target}: finalists" if several else "Finalists")
    _add_finalists(page, data, target)
    page.section(f"Cost on {target}", f"{target}: cost" if several else "Cost")
    add_measured(page, data, target)
    page.section(f"Architectures on {target}", f"{target}: architectures" if several else "Architectures")
    _add_architectures(page, data, target)
    page.section(f"Lineage on {target}", f"{target}: lineage" if several else "Lineage")
    add_lineage(page, data, target)
    page.section(f"Try them on {target}", f"{target}: try" if several else "Try them")
    add_usage(page, data, target)


def _add_finalists(page: Page, data: ReportData, target: str) -> None:
    columns = [Column("net"), Column("size (MB)", 3)]
    for state in ("inherited", "fine-tuned"):
        columns += [Column(f"{split} loss", 3, state) for split in ("valid", "test")]
        columns += [Column(f"{split} accuracy", 1, state, percent=True) for split in ("valid", "test")]
    columns += [
        Column("test perplexity", 2, "shipped weights"),
        Column("test loss, runtime", 3, "shipped weights"),
    ]
    columns += [Column("test accuracy, runtime", 1, "shipped weights", percent=True)]
    columns += [Column("late test loss", 3, "shipped weights")]
    columns += [Column("hardest hit slice", group="shipped weights"), Column("its rise", 3, "shipped weights")]
    best = best_finalist(data, target)
    original = ""
    if any(map(is_original, data.baselines.get(target, []))):
        original = "<i>Original</i>: the pretrained model as it came, on which nothing here was trained. "
        begun = [entry["name"] for entry, _ in nets_of(data, target) if begun_with_original(entry)]
        if begun:
            original += f"Fine-tuned from its weights, cut to size: {escape(', '.join(begun))}. "
    rows = []
    reference = next(iter(uncut(data, target)), {})
    for entry, kind in nets_of(data, target):
        values: list[object] = [entry["name"], size_of(entry)]
        for state in ("inherited", "fine_tuned"):
            values += [lookup(entry, state, f"{split}_{what}") for what in ("loss", "accuracy") for split in SPLITS]
        values += [perplexity(lookup(shipped(entry), "test_loss"))]
        values += [lookup(entry, "runtime_test", "loss"), lookup(entry, "runtime_test", "accuracy")]
        hit = hardest_hit(*(shipped(each).get("slice_losses") or {} for each in (entry, reference)))
        values += [lookup(shipped(entry), "late_loss"), *(hit if entry is not reference else (None, None))]
        rows.append(Row(values, kind, entry is best))
    page.add(
        table(columns, rows, sorted_by=1),
        '<p class="note">Loss in nats per token, accuracy of the next token. '
        "The search chose by <i>valid</i>, "
        "and <i>test</i> was touched once: a finalist that gains on valid but not on test was overfitted. "
        "<i>Runtime</i>: the exported file, scored by the runtime itself, as nets of a runtime's own quantizer are "
        "throughout. "
        "<i>Late</i>: positions beyond the first quarter of the context. "
        "<i>Hardest hit</i>: the slice of the corpus where the loss rose most over that of "
        f"{escape(reference.get('name') or 'the largest net, which was not judged')}. {original}"
        f"The shaded row has the lowest {'fitness' if weights(data) else 'valid loss'}. Click a head to sort.</p>",
        "<h3>Test loss over size</h3>",
    )
    page.figure(figures.test_loss(data, target), "Hollow: inherited weights. Filled: fine-tuned.")


def _add_architectures(page: Page, data: ReportData, target: str) -> None:
    page.add(
        '<p class="note">'
        '<span class="chip" style="background:#186b48;color:#fff">width</span> share of the largest choice; '
        '<span class="chip" style="background:#542d82;color:#fff">format</span> bits per weight; '
        'darker is more. <span class="chip dropped">dropped</span> blocks leave nothing to decide.</p>'
    )
    nets = ""
    for entry, _ in (item for item in nets_of(data, target) if item[1] == "finalist"):
        nets += (
            f"<div><h3>{escape(headline(data, target, entry))}</h3>{grid_html(grid(data.space, entry['genome']))}</div>"
        )
    page.add(f'<div class="nets">{nets}</div>')
