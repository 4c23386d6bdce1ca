"""The page a user reads in the end: what was found, against what, how it came about, how to run it.

Everything is read from the files of the run, so a report can be written again at any time. Text from files
is escaped, and the page needs nothing from outside itself.
"""

from html import escape
from pathlib import Path

from search import figures
from search.grids import grid, grid_html
from search.pictures import write_pictures
from search.report_data import (
    Entry,
    ReportData,
    best_finalist,
    changed_genes,
    is_measured,
    label,
    lineage,
    lookup,
    number,
    operator_counts,
    perplexity,
    read_report_data,
    rival,
    shipped,
)
from search.report_html import Column, Page, Row, format_number, table
from search.report_usage import add_usage
from supernet.files import write_text

NOT_MEASURED = "llama-cpp-python is not installed: <code>pip install -e '.[gguf]'</code> adds latency, memory and sample text"


def write_report(search_dir: Path) -> Path:
    """Write `report.html` and its PNGs into the folder of a finished search.

    Returns:
        The path of the page.

    Raises:
        UserError: a file the report needs is missing or damaged.
    """
    data = read_report_data(search_dir)
    run_name, search_name = search_dir.absolute().parent.parent.name, search_dir.name
    page = Page(f"{run_name} / {search_name}")
    _add_headline(page, data)
    for target in data.targets:
        _add_target(page, data, target)
    _add_search(page, data)
    _add_gates(page, data)
    _add_training(page, data)
    _add_settings(page, data)
    write_pictures(data)
    path = search_dir / "report.html"
    write_text(path, page.html())
    return path


def _add_headline(page: Page, data: ReportData) -> None:
    for target in data.targets:
        finalist = best_finalist(data, target)
        prefix = f"{target}: " if len(data.targets) > 1 else ""
        if finalist is None:
            page.add(f"<h1>{escape(prefix)}no finalist has been scored</h1>")
            continue
        page.add(
            f"<h1>{escape(prefix + _headline(finalist))}</h1>",
            f'<p class="lead">{_comparison(data, target)}</p>',
        )
    facts = [
        (
            "budget",
            f"{data.budget:g} {'MB' if data.axes[0] == 'size_mb' else data.axes[0]}"
            if data.budget
            else "none",
        ),
        ("strategy", _setting(data, "strategy", "evolution._target_", "evolution.name")),
        ("evaluations", f"{len(data.candidates):,}"),
        ("search space", f"{len(data.space)} genes, 10^{len(str(data.space.n_genomes)) - 1} nets"),
        ("seed", _setting(data, "seed")),
    ]
    cells = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in facts)
    page.add(f'<div class="facts">{cells}</div>')


def _headline(entry: Entry) -> str:
    size, loss = lookup(entry, "scores", "size_mb"), lookup(shipped(entry), "test_loss")
    return f"{entry['name']}: {format_number(size, 2)} MB, test loss {format_number(loss, 3)}"


def _comparison(data: ReportData, target: str) -> str:
    """Say what the best finalist is worth beside the baseline nearest in size, without flattering it."""
    finalist = best_finalist(data, target)
    baseline = rival(data, target, finalist) if finalist else None
    if finalist is None or baseline is None:
        return "There is no baseline to compare with."
    text = f"Against {_headline(baseline)}"
    size = finalist["scores"]["size_mb"] / baseline["scores"]["size_mb"] - 1
    text += f" (the baseline nearest in size): {abs(size):.0%} {'smaller' if size < 0 else 'larger'}"
    ours, theirs = lookup(shipped(finalist), "test_loss"), lookup(shipped(baseline), "test_loss")
    if ours is not None and theirs is not None:
        text += f", test loss {abs(ours - theirs):.3f} {'lower' if ours < theirs else 'higher'}"
    tuned = [bool(entry.get("fine_tuned")) for entry in (finalist, baseline)]
    if tuned[0] != tuned[1]:
        inherited = lookup(finalist, "inherited", "test_loss")
        text += ". Only one of the two is fine-tuned"
        text += f"; with inherited weights the finalist has {format_number(inherited, 3)}" if tuned[0] else ""
    return escape(text + ".")


def _setting(data: ReportData, *keys: str) -> str:
    for key in keys:
        for name, value in data.settings.items():
            if (name == key or name.endswith(f".{key}")) and value is not None:
                return str(value).rsplit(".", 1)[-1] if key.endswith("_target_") else str(value)
    return "–"


def _add_target(page: Page, data: ReportData, target: str) -> None:
    several = len(data.targets) > 1
    page.section(f"Front on {target}", f"{target}: front" if several else "Front")
    page.figure(
        figures.front(data, target),
        "Each point is a net with inherited weights. Hover for its origin and architecture; drag to zoom.",
    )
    page.section(
        f"Finalists against baselines on {target}", f"{target}: finalists" if several else "Finalists"
    )
    _add_finalists(page, data, target)
    page.section(f"Measured on {target}", f"{target}: measured" if several else "Measured")
    _add_measured(page, data, target)
    page.section(f"Architectures on {target}", f"{target}: architectures" if several else "Architectures")
    _add_architectures(page, data, target)
    page.section(f"Lineage on {target}", f"{target}: lineage" if several else "Lineage")
    for i, entry in enumerate(data.finalists[target] if target in data.finalists else []):
        _add_lineage(page, data, entry, opened=i == 0)
    page.section(f"Try them on {target}", f"{target}: try" if several else "Try them")
    add_usage(page, data, target)


def _entries(data: ReportData, target: str) -> list[tuple[Entry, str]]:
    """Return finalists and baselines with their kind, by size."""
    both = [(e, "finalist") for e in data.finalists.get(target, [])]
    both += [(e, "baseline") for e in data.baselines.get(target, [])]
    return sorted(both, key=lambda item: lookup(item[0], "scores", "size_mb") or 0)


def _add_finalists(page: Page, data: ReportData, target: str) -> None:
    columns = [Column("net"), Column("size (MB)", 2)]
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
            values += [
                lookup(entry, state, f"{split}_{what}") for what in ("loss", "accuracy") for split in SPLITS
            ]
        values += [perplexity(lookup(shipped(entry), "test_loss"))]
        values += [lookup(entry, "llama_cpp_test", "loss"), lookup(entry, "llama_cpp_test", "accuracy")]
        rows.append(Row(values, kind, entry is best))
    page.add(
        table(columns, rows, sorted_by=1),
        '<p class="note">Loss in nats per token, accuracy of the next token. The search chose by <i>valid</i>; '
        "<i>test</i> was touched once, so a finalist that gains on valid but not on test was overfitted. "
        "<i>Runtime</i>: the exported file scored by the runtime itself. "
        "The shaded row has the lowest valid loss. Click a head to sort.</p>",
        "<h3>Test loss over size</h3>",
    )
    page.figure(figures.test_loss(data, target), "Hollow: inherited weights. Filled: fine-tuned.")


SPLITS = ("valid", "test")
COSTS = {
    "file_size_mb": ("file (MB)", 2),
    "prefill_ms": ("TTFT (ms)", 1),
    "decode_ms_p50": ("decode p50 (ms/token)", 2),
    "decode_ms_p95": ("decode p95 (ms/token)", 2),
    "peak_memory_mb": ("peak memory (MB)", 1),
    "kv_bytes_per_token": ("KV cache (bytes/token)", 0),
}


def _add_measured(page: Page, data: ReportData, target: str) -> None:
    entries, members = _entries(data, target), data.front.get(target, [])
    costs = [Column(name, digits) for name, digits in COSTS.values()]
    if not any(is_measured(e) for e in [*members, *(entry for entry, _ in entries)]):
        page.add(f'<p class="missing">{NOT_MEASURED}.</p>')
    rows = []
    for entry, kind in entries:
        values = [lookup(entry, "measured", cost) for cost in COSTS]
        rows.append(Row([entry["name"], lookup(entry, "scores", "size_mb"), *values], kind))
    prompts = {
        lookup(e, "measured", "prefill_tokens") for e in [*members, *(entry for entry, _ in entries)]
    } - {None}
    prompt = (
        f" for a prompt of {', '.join(f'{n:g}' for n in sorted(filter(None, prompts)))} tokens"
        if prompts
        else ""
    )
    page.add(
        "<h3>Cost of finalists and baselines</h3>",
        table([Column("net"), Column("size (MB)", 2), *costs], rows, sorted_by=1),
        f'<p class="note">TTFT: time to the first token{prompt}. One thread unless the settings say otherwise.</p>',
    )
    if members:
        page.add("<h3>The predicted front, measured</h3>")
    if any(is_measured(e) for e in members):
        page.figure(
            figures.measured_front(data, target), "A front that keeps its shape here was predicted well."
        )
    scores = list(dict.fromkeys(name for e in members for name in e["scores"]))
    columns = [Column("id", 0), *(Column(_short(name), 3, "search scores") for name in scores)]
    columns += [Column(name, digits, "measured") for name, digits in COSTS.values()]
    values_of = [
        [
            e["id"],
            *(e["scores"].get(name) for name in scores),
            *(lookup(e, "measured", cost) for cost in COSTS),
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
        '<p class="note"><span class="chip" style="background:#186b48;color:#fff">width</span> by its share of the '
        'largest choice, <span class="chip" style="background:#542d82;color:#fff">format</span> by its bits per '
        'weight (darker is more), <span class="chip dropped">dropped</span> blocks leave nothing to decide.</p>'
    )
    nets = ""
    for entry in data.finalists.get(target, []):
        nets += (
            f"<div><h3>{escape(_headline(entry))}</h3>{grid_html(grid(data.space, entry['genome']))}</div>"
        )
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


def _add_search(page: Page, data: ReportData) -> None:
    page.section("Progress of the search", "Search")
    page.figure(
        figures.search_progress(data),
        "Hypervolume: dominated share of the box between the best and the worst feasible scores of this search.",
    )
    front_ids = {entry["id"] for members in data.front.values() for entry in members}
    columns = [Column("operator"), Column("on the front", 0), Column("evaluated", 0), Column("feasible", 0)]
    rows = [
        Row([name, hits, tried, fits])
        for name, tried, fits, hits in operator_counts(data.candidates, front_ids)
    ]
    page.add("<h3>Where the candidates came from</h3>", table(columns, rows))


def _add_gates(page: Page, data: ReportData) -> None:
    if not data.gates.get("history") or not data.gates.get("budgets_mb"):
        return
    page.section("Gates over training", "Gates")
    page.figure(figures.expected_size(data), "Dashed: the budgets. Gates move only in the gate phase.")
    page.figure(
        figures.gates(data),
        "Blue: the gate leans to the cheapest choice; red: to the dearest; pale: undecided or in between. "
        "Hover for the probabilities.",
    )


def _add_training(page: Page, data: ReportData) -> None:
    if not data.metrics.get("step") and not data.summary:
        return
    page.section("Training of the supernet", "Training")
    facts = [
        f"{data.summary[key]:,.0f} {name}"
        for key, name in (
            ("parameters", "parameters"),
            ("steps", "steps"),
            ("tokens", "tokens"),
            ("seconds", "s"),
        )
        if number(data.summary.get(key)) is not None
    ]
    phases = [
        f"{phase.get('name')} {format_number(phase.get('steps'), 0)} steps in {format_number(phase.get('seconds'), 0)} s"
        for phase in data.summary.get("phases") or []
    ]
    page.add(f"<p>{escape(', '.join(facts))}{escape('; phases: ' + ', '.join(phases) if phases else '')}</p>")
    if data.metrics.get("step"):
        page.figure(
            figures.training(data), "Largest, smallest and sampled nets of the sandwich rule; bands: phases."
        )
    if data.summary.get("table"):
        columns = [Column("net"), Column("size (MB)", 2), Column("valid loss", 3)]
        columns += [Column("valid accuracy", 1, percent=True)]
        keys = ("name", "size_mb", "valid_loss", "valid_accuracy")
        nets = sorted(data.summary["table"], key=lambda net: lookup(net, "size_mb") or 0)
        page.add(
            "<h3>After training</h3>", table(columns, [Row([net.get(k) for k in keys]) for net in nets], 1)
        )


def _add_settings(page: Page, data: ReportData) -> None:
    if data.settings:
        page.section("Settings")
        rows = [Row([key, value]) for key, value in sorted(data.settings.items())]
        columns = [Column("key"), Column("value", flow=True)]
        page.add(
            f"<details><summary>All settings of this search</summary>{table(columns, rows, 0)}</details>"
        )
