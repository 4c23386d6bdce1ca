"""The page a user reads in the end: what was found, against what, how it came about, how to run it.

Everything is read from the files of the run, so a report can be written again at any time. Text from files
is escaped, and the page needs nothing from outside itself.
"""

from html import escape
from pathlib import Path

from search.entries import shipped, ships_tuned
from search.report import figures_over_time
from search.report.data import ReportData, lookup, number, read_report_data
from search.report.html import Column, Page, Row, format_number, table
from search.report.nets import best_finalist, rival, size_of
from search.report.pictures import write_pictures
from search.report.progress import add_search
from search.report.scores import budgets, objectives, words
from search.report.sensitivity import add_sensitivity
from search.report.target import add_target, headline
from supernet.files import write_text
from supernet.genes import KINDS


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
        add_target(page, data, target)
    add_search(page, data)
    add_sensitivity(page, data)
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
            f"<h1>{escape(prefix + headline(data, target, finalist))}</h1>",
            f'<p class="lead">{_comparison(data, target)}</p>',
        )
    facts = [
        ("minimized", ", ".join(dict.fromkeys(words(n)[0] for t in data.targets for n in objectives(data, t)))),
        ("budget", "; ".join(_bound(name, bound) for name, bound in budgets(data).items()) or "none"),
        ("strategy", _strategy(data)),
        ("evaluations", _evaluations(data)),
        ("search space", f"{len(data.space)} genes, {data.space.n_genomes:.0e} nets".replace("e+", "e")),
        ("pretrained", Path((data.summary.get("pretrained") or {}).get("path", "–")).name),
        ("workers", _setting(data, "workers")),
        ("seed", _setting(data, "seed")),
    ]
    facts = [(name, value) for name, value in facts if value != "–"]
    cells = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in facts)
    page.add(f'<div class="facts">{cells}</div>')


def _bound(name: str, bound: float) -> str:
    plain, unit = words(name)
    return f"{plain} ≤ {bound:g} {unit}".strip()


def _evaluations(data: ReportData) -> str:
    stopped = len(data.candidates) - len(data.whole)
    return f"{len(data.candidates):,}" + (f", {stopped:,} of them stopped early" if stopped else "")


def _comparison(data: ReportData, target: str) -> str:
    """Say what the best finalist is worth beside the baseline nearest in size, without flattering it."""
    finalist = best_finalist(data, target)
    baseline = rival(data, target, finalist) if finalist else None
    if finalist is None or baseline is None:
        return "There is no baseline to compare with."
    text = f"Against {headline(data, target, baseline)}"
    size = (size_of(finalist) or 0) / (size_of(baseline) or 1) - 1  # both known, or there were no rival
    text += f" (the baseline nearest in size): {abs(size):.0%} {'smaller' if size < 0 else 'larger'}"
    ours, theirs = lookup(shipped(finalist), "test_loss"), lookup(shipped(baseline), "test_loss")
    if ours is not None and theirs is not None:
        text += f", test loss {abs(ours - theirs):.3f} {'lower' if ours < theirs else 'higher'}"
    tuned = [ships_tuned(entry) for entry in (finalist, baseline)]
    if tuned[0] != tuned[1]:
        inherited = lookup(finalist, "inherited", "test_loss")
        text += ". Only one of the two is fine-tuned"
        text += f"; with inherited weights the finalist has {format_number(inherited, 3)}" if tuned[0] else ""
    return escape(text + ".")


def _setting(data: ReportData, key: str) -> str:
    value = data.settings.get(key)
    return "–" if value is None else str(value)


def _strategy(data: ReportData) -> str:
    """Name the strategy, and the kinds of genes that it varies where these are not all."""
    name = _setting(data, "evolution._target_").rsplit(".", 1)[-1]
    varied = data.settings.get("evolution.vary")
    if not isinstance(varied, list) or set(varied) == set(KINDS):
        return name
    return f"{name}, {' and '.join(map(str, varied))} only"


def _add_gates(page: Page, data: ReportData) -> None:
    if not data.gate_sets:
        return
    page.section("Gates over training", "Gates")
    for unit in dict.fromkeys(gates.unit for gates in data.gate_sets):
        page.figure(figures_over_time.expected_cost(data, unit), "Dashed: the budgets.")
    page.figure(
        figures_over_time.gates(data),
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
    page.add(f"<p>{escape(', '.join(facts))}</p>", _pretrained(data), _ordering(data))
    if data.summary.get("phases"):
        columns = [Column("phase"), Column("steps", 0), Column("seconds", 0)]
        columns += [Column("tokens (M)", 2), Column("TFLOPs", 1)]
        units = (("steps", 1), ("seconds", 1), ("tokens", 1e6), ("flops", 1e12))
        rows = []
        for phase in data.summary["phases"]:
            amounts = [(lookup(phase, key), unit) for key, unit in units]
            rows.append(Row([phase.get("name"), *(None if n is None else n / unit for n, unit in amounts)]))
        page.add("<h3>What each phase cost</h3>", table(columns, rows))
    if data.metrics.get("step"):
        page.figure(
            figures_over_time.training(data),
            "Training loss of the largest, the smallest and sampled nets.",
        )
    if data.summary.get("table"):
        columns = [Column("net"), Column("size (MB)", 3), Column("valid loss", 3)]
        columns += [Column("valid accuracy", 1, percent=True)]
        keys = ("name", "size_mb", "valid_loss", "valid_accuracy")
        nets = sorted(data.summary["table"], key=lambda net: lookup(net, "size_mb") or 0)
        page.add("<h3>After training</h3>", table(columns, [Row([net.get(k) for k in keys]) for net in nets], 1))


def _pretrained(data: ReportData) -> str:
    """Say what the largest net began as, and what of it was padded; empty for a run that began from the seed."""
    about = data.summary.get("pretrained")
    if not about:
        return ""
    text = f"<p>The largest net began as <b>{escape(Path(about['path']).name)}</b> "
    text += f"({escape(about['kind'])}, {escape(about['path'])}), exactly. "
    padded = [f"{escape(key)} from {theirs} to {ours}" for key, (theirs, ours) in about["padded"].items()]
    text += f"Padded with zeros, which change nothing of what it computes: {', '.join(padded)}." if padded else ""
    return text + ("" if padded else "Nothing had to be padded.") + "</p>"


def _ordering(data: ReportData) -> str:
    """Say how and on what text channels and heads were ordered; empty where they were not."""
    n_tokens = number(data.summary.get("ordered_on"))
    if not n_tokens:
        return ""
    return (
        f"<p>What widths cut was put in order of importance on {n_tokens:,.0f} tokens of the training split: hidden"
        " channels and heads by elimination, each time the one that the others make up for best;"
        " channels of the residual stream by their magnitude times the weights that read them.</p>"
    )


def _add_settings(page: Page, data: ReportData) -> None:
    if data.settings:
        page.section("Settings")
        rows = [Row([key, value]) for key, value in sorted(data.settings.items())]
        columns = [Column("key"), Column("value", flow=True)]
        page.add(f"<details><summary>All settings of this search</summary>{table(columns, rows, 0)}</details>")
