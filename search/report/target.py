"""The report's sections about one target: front, finalists, measured cost, architectures, usage."""

from html import escape

from search.report import figures
from search.report.data import (
    Entry,
    ReportData,
    best_finalist,
    is_measured,
    label,
    lookup,
    measured,
    number,
    perplexity,
    shipped,
)
from search.report.grids import grid, grid_html
from search.report.history import changed_genes, lineage
from search.report.html import Column, Page, Row, format_number, table
from search.report.usage import add_usage

NOT_MEASURED = (
    "llama-cpp-python is not installed: <code>pip install -e '.[gguf]'</code> adds latency, memory and sample text"
)
SPLITS = ("valid", "test")
COSTS = {
    "file_mb": ("file (MB)", 3),
    "ttft_ms": ("TTFT (ms)", 1),
    "decode_ms": ("decode p50 (ms/token)", 3),
    "decode_p95_ms": ("decode p95 (ms/token)", 3),
    "peak_memory_mb": ("peak memory (MB)", 1),
    "kv_bytes_per_token": ("KV cache (bytes/token)", 0),
}


def headline(entry: Entry) -> str:
    """Return a net in one line: name, size, test loss of the shipped weights."""
    size, loss = lookup(entry, "scores", "size_mb"), lookup(shipped(entry), "test_loss")
    digits = 2 if size is None or size >= 1 else 3
    return f"{entry['name']}: {format_number(size, digits)} MB, test loss {format_number(loss, 3)}"


def add_target(page: Page, data: ReportData, target: str) -> None:
    """Add the sections of one target."""
    several = len(data.targets) > 1
    page.section(f"Front on {target}", f"{target}: front" if several else "Front")
    page.figure(
        figures.front(data, target),
        "Each point is a net with inherited weights. Hover for its origin and architecture; drag to zoom.",
    )
    page.section(f"Finalists against baselines on {target}", f"{target}: finalists" if several else "Finalists")
    _add_finalists(page, data, target)
    page.section(f"Measured on {target}", f"{target}: measured" if several else "Measured")
    _add_measured(page, data, target)
    page.section(f"Architectures on {target}", f"{target}: architectures" if several else "Architectures")
    _add_architectures(page, data, target)
    page.section(f"Lineage on {target}", f"{target}: lineage" if several else "Lineage")
    best = best_finalist(data, target)
    for entry, kind in _entries(data, target):
        if kind == "finalist":
            _add_lineage(page, data, entry, opened=entry is best)
    page.section(f"Try them on {target}", f"{target}: try" if several else "Try them")
    add_usage(page, data, target)


def _entries(data: ReportData, target: str) -> list[tuple[Entry, str]]:
    """Return finalists and baselines with their kind, by size."""
    both = [(e, "finalist") for e in data.finalists.get(target, [])]
    both += [(e, "baseline") for e in data.baselines.get(target, [])]
    return sorted(both, key=lambda item: lookup(item[0], "scores", "size_mb") or 0)


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
    best = best_finalist(data, target)
    rows = []
    for entry, kind in _entries(data, target):
        values: list[object] = [entry["name"], lookup(entry, "scores", "size_mb")]
        for state in ("inherited", "fine_tuned"):
            values += [lookup(entry, state, f"{split}_{what}") for what in ("loss", "accuracy") for split in SPLITS]
        values += [perplexity(lookup(shipped(entry), "test_loss"))]
        values += [lookup(entry, "runtime_test", "loss"), lookup(entry, "runtime_test", "accuracy")]
        rows.append(Row(values, kind, entry is best))
    page.add(
        table(columns, rows, sorted_by=1),
        '<p class="note">Loss in nats per token, accuracy of the next token. '
        "The search chose by <i>valid</i>, "
        "and <i>test</i> was touched once: a finalist that gains on valid but not on test was overfitted. "
        "<i>Runtime</i>: the exported file, scored by the runtime itself. "
        "The shaded row has the lowest valid loss. Click a head to sort.</p>",
        "<h3>Test loss over size</h3>",
    )
    page.figure(figures.test_loss(data, target), "Hollow: inherited weights. Filled: fine-tuned.")


def _add_measured(page: Page, data: ReportData, target: str) -> None:
    entries, members = _entries(data, target), data.front.get(target, [])
    costs = [Column(name, digits) for name, digits in COSTS.values()]
    if not any(is_measured(e) for e in [*members, *(entry for entry, _ in entries)]):
        page.add(f'<p class="missing">{NOT_MEASURED}.</p>')
    for entry, _ in entries:
        reason = (entry.get("measured") or {}).get("reason")
        if reason:
            page.add(f'<p class="missing">{escape(str(entry["name"]))} did not run: {escape(str(reason))}</p>')
    rows = []
    for entry, kind in entries:
        values = [measured(entry, cost) for cost in COSTS]
        rows.append(Row([entry["name"], lookup(entry, "scores", "size_mb"), *values], kind))
    prompts = {measured(e, "prefill_tokens") for e in [*members, *(entry for entry, _ in entries)]} - {None}
    prompt = f" for a prompt of {', '.join(f'{n:g}' for n in sorted(filter(None, prompts)))} tokens" if prompts else ""
    page.add(
        "<h3>Cost of finalists and baselines</h3>",
        table([Column("net"), Column("size (MB)", 3), *costs], rows, sorted_by=1),
        f'<p class="note">TTFT: time to the first token{prompt}. MB are 10⁶ bytes.</p>',
    )
    if members:
        page.add("<h3>The predicted front, measured</h3>")
    if any(is_measured(e) for e in members):
        page.figure(figures.measured_front(data, target), "A front that keeps its shape here was predicted well.")
    scores = list(dict.fromkeys(name for e in members for name in e["scores"]))
    columns = [Column("id", 0), *(Column(_short(name), 3, "search scores") for name in scores)]
    columns += [Column(name, digits, "measured") for name, digits in COSTS.values()]
    values_of = [
        [
            e["id"],
            *(e["scores"].get(name) for name in scores),
            *(measured(e, cost) for cost in COSTS),
        ]
        for e in members
    ]
    first = scores.index(data.axes[0]) + 1 if data.axes[0] in scores else 0
    ordered = sorted(values_of, key=lambda values: number(values[first]) or 0)
    if members:
        page.add(table(columns, [Row(values) for values in ordered], sorted_by=first))


def _short(objective: str) -> str:
    return "valid loss" if objective == "loss" else label(objective)


def _add_architectures(page: Page, data: ReportData, target: str) -> None:
    page.add(
        '<p class="note">'
        '<span class="chip" style="background:#186b48;color:#fff">width</span> share of the largest choice; '
        '<span class="chip" style="background:#542d82;color:#fff">format</span> bits per weight; '
        'darker is more. <span class="chip dropped">dropped</span> blocks leave nothing to decide.</p>'
    )
    nets = ""
    for entry, _ in (item for item in _entries(data, target) if item[1] == "finalist"):
        nets += f"<div><h3>{escape(headline(entry))}</h3>{grid_html(grid(data.space, entry['genome']))}</div>"
    page.add(f'<div class="nets">{nets}</div>')


def _add_lineage(page: Page, data: ReportData, entry: Entry, opened: bool) -> None:
    line = lineage(data, entry)
    if not line:
        return
    x, y = data.axes
    columns = [Column("generation", 0), Column("id", 0), Column("operator"), Column("parents")]
    columns += [
        Column("genes changed", flow=True),
        Column("valid loss" if y == "loss" else y, 3),
        Column("change", 3),
    ]
    columns += [Column(label(x), 3), Column("change", 3)]
    rows = []
    for before, step in zip([None, *line], line, strict=False):
        origin, changed = step.get("lineage") or {}, changed_genes(step)
        listed = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
        parents = ", ".join(map(str, origin.get("parents") or []))
        values: list[object] = [
            origin.get("generation"),
            step["id"],
            origin.get("operator", "?"),
            parents,
            listed,
        ]
        for name in (y, x):
            now, then = lookup(step, "scores", name), lookup(before or {}, "scores", name)
            values += [now, now - then if now is not None and then is not None else None]
        rows.append(Row(values))
    first = (line[0].get("lineage") or {}).get("operator", "?")
    steps = f"{len(line) - 1} step{'s' * (len(line) != 2)} from {first!r}"
    head = f'<summary><b class="finalist">{escape(str(entry["name"]))}</b>: {escape(steps)}</summary>'
    page.add(f"<details{' open' if opened else ''}>{head}{table(columns, rows)}</details>")
