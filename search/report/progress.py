"""The report's section about the search itself: its progress, how far candidates came, what made them."""

from collections import Counter
from html import escape

from search.report import figures_over_time
from search.report.data import ReportData, lookup
from search.report.history import end_of, ends, failures, operator_counts
from search.report.html import Column, Page, Row, table
from search.report.scores import axes, base, label, weights

MAX_REASONS = 5  # of failures


def add_search(page: Page, data: ReportData) -> None:
    """Add the progress of the search, its hurdles and its operators."""
    page.section("Progress of the search", "Search")
    x, y = (base(name) for name in axes(data, data.targets[0]))
    page.figure(
        figures_over_time.search_progress(data),
        "Hypervolume: dominated share of the box between the best and the worst feasible scores, on their axes, "
        f"over {escape(label(x))} and {escape(label(y))}.",
    )
    _add_weights(page, data)
    _add_levels(page, data)
    levels = ends(data.candidates)
    heads = [(level, level if level == "failed" else f"stopped at {level}") for level in levels]
    columns = [Column("operator"), Column("on a front", 0), Column("evaluated", 0), Column("feasible", 0)]
    columns += [Column(head, 0) for _, head in heads]
    keys = ["front", "evaluated", "feasible", *levels]
    rows = [Row([name, *(counts[key] for key in keys)]) for name, counts in operator_counts(data)]
    page.add("<h3>Where the candidates came from</h3>", table(columns, rows))


def _add_weights(page: Page, data: ReportData) -> None:
    terms = weights(data)
    if not terms:
        return
    columns = [Column("score"), Column("weight")]
    rows = [Row([label(name), f"{weight:g}"]) for name, weight in terms.items()]
    page.add(
        "<h3>Fitness</h3>",
        table(columns, rows),
        '<p class="note">Candidates were compared by the sum of weight times score, in the units shown; the lowest is '
        "best. A score of several targets counts with its mean.</p>",
    )


def _add_levels(page: Page, data: ReportData) -> None:
    """Say how many candidates each hurdle stopped, and why some failed."""
    levels = ends(data.candidates)
    if not levels:
        return
    judged_on = {f"hurdle {i}": level for i, level in enumerate(data.settings.get("hurdles.levels") or [], start=1)}
    judged_on["scored"] = {"sequences": data.settings.get("eval_sequences")}
    counts = Counter(map(end_of, data.candidates))
    rows = [
        Row([name, lookup(judged_on.get(end, {}), "sequences"), counts[end], counts[end] / len(data.candidates)])
        for end, name in [*((level, level) for level in levels), ("scored", "scored to the end")]
    ]
    columns = [Column("ended at"), Column("judged on (sequences)", 0), Column("candidates", 0)]
    columns += [Column("share", 1, percent=True)]
    page.add("<h3>How far the candidates came</h3>", table(columns, rows))
    reasons = failures(data.candidates)
    for reason, n in reasons[:MAX_REASONS]:
        page.add(f'<p class="missing">{n} {escape(reason)}</p>')
    if len(reasons) > MAX_REASONS:
        page.add(f'<p class="note">… and {len(reasons) - MAX_REASONS} other reasons; journal.jsonl has them all.</p>')
