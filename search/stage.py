"""The steps of `search.py`, in the order it names them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from search.ahead import Net, tune_ahead
from search.candidate import Candidate
from search.entries import shipped
from search.evolution import pareto_front
from search.finalists import best_within, near_budget, spread
from search.journal import Journal
from search.loop import evolve
from search.original import original_baseline
from search.session import FINALISTS, FRONT, JOURNAL, REPORT, Search, opened
from search.shipping import Shipyard
from search.targets import Runtime
from supernet.claims import CONFIG, locked, read_config
from supernet.cli import argument, print_table, progress, typed_command
from supernet.config import job_name
from supernet.errors import UserError
from supernet.files import Parts, read_json, write_json
from supernet.genes import Genome

__all__ = [
    "evolve",
    "export_candidate",
    "finish",
    "fronts",
    "measure_fronts",
    "opened",
    "say_finished",
    "tune_and_ship",
]


def fronts(search: Search, candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Return by target the non-dominated candidates within the budget; say where there are none.

    Raises:
        UserError: no candidate meets the budget on any target, or none could be scored.
    """
    scorer, result, missed = search.scorer, {}, []
    for name in scorer.targets:
        here = _on_target(search, candidates, name)
        if not here:
            reasons = sorted({c.stopped for c in candidates if c.stopped is not None})
            raise UserError(f"no candidate could be scored: {'; '.join(reasons)}")
        front = pareto_front(here, scorer.names(name))
        if front:
            result[name] = front
        else:
            nearest = min(here, key=lambda c: c.violation)
            seen = ", ".join(f"{score}={nearest.scores[score]:.4g}" for score in scorer.bounds(name))
            missed.append(f"no candidate met the budget {scorer.budget} on {name}; the nearest had {seen}")
    if not result:
        raise UserError("; ".join(missed))
    for line in missed:
        print(line)
    return result


def _on_target(search: Search, candidates: Sequence[Candidate], target: str) -> list[Candidate]:
    """Return the candidates scored to the end, held to the budgets as they are on one target."""
    return [replace(c, violation=search.scorer.violation(c.scores, target)) for c in candidates if c.whole]


def measure_fronts(search: Search, fronts: Mapping[str, Sequence[Candidate]]) -> None:
    """Measure some members of each front, spread over it, and write front.json."""
    path, yard = search.folder / FRONT, search.shipyard()
    parts = Parts(path)
    if path.exists():
        parts.done()
        return
    content: dict[str, list[dict[str, Any]]] = {}
    for name, front in fronts.items():
        chosen = {c.id for c in spread(front, search.scorer.names(name), search.config.n_measured)}
        entries = content[name] = []
        with progress(iterable=front, desc=f"measure the front on {name}", unit="net") as bar:
            for candidate in bar:
                measured = None
                if candidate.id in chosen:
                    measure = partial(_measured, yard, search.scorer.targets[name], candidate.genome)
                    measured = parts.part(f"{name} {candidate.id}", measure)
                entries.append(
                    {
                        **candidate.to_json(),
                        "architecture": yard.space.decode(candidate.genome),
                        "predicted": yard.predicted(candidate.genome).get(name),
                        "measured": measured,
                    }
                )
    write_json(path, {"targets": content})
    parts.done()


def _measured(yard: Shipyard, target: Runtime, genome: Genome) -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory() as folder:
        return yard.measure(target, yard.inherited(genome), Path(folder))


def tune_and_ship(
    search: Search, candidates: Sequence[Candidate], fronts: Mapping[str, Sequence[Candidate]]
) -> dict[str, Any]:
    """Fine-tune and ship the finalists, judge them and the baselines on `test`; return finalists.json."""
    yard, content = search.shipyard(), {}
    finalists = {name: _finalists(search, candidates, front, name) for name, front in fronts.items()}
    if search.config.workers != 1:
        tune_ahead(yard, search.tuners(), _to_tune(search, yard, finalists))
    original = original_baseline(yard) if search.config.baselines else []
    for name, chosen in finalists.items():
        shipped = [yard.finalist(candidate) for candidate in chosen]
        compared = []
        if search.config.baselines:
            compared = [yard.baseline(label, genome) for label, genome in yard.space.baselines()]
            compared += original + yard.quantizer_baselines(search.scorer.targets[name])
        content[name] = {"finalists": [_on(name, e) for e in shipped], "baselines": [_on(name, e) for e in compared]}
    return {"targets": content}


def _to_tune(search: Search, yard: Shipyard, finalists: Mapping[str, Sequence[Candidate]]) -> list[Net]:
    """Return all that is to be fine-tuned, for whatever target."""
    tuning = yard.finetuning
    nets = [Net(str(c.id), f"finalist {c.id}", c.genome) for chosen in finalists.values() for c in chosen]
    if search.config.baselines and tuning.baselines:
        nets += [Net(name, name, genome) for name, genome in yard.space.baselines()]
    return nets if tuning.steps else []


def _finalists(
    search: Search, candidates: Sequence[Candidate], front: Sequence[Candidate], target: str
) -> list[Candidate]:
    """Return who is worth fine-tuning on a target: for the sizes that were asked for, or spread over the front.

    With a fitness the best by it, on the front or not. Where nothing is within any size, the smallest.
    """
    config, scorer = search.config, search.scorer
    feasible = [c for c in _on_target(search, candidates, target) if c.feasible]
    fitness = search.make_strategy([]).value
    if config.finalist_sizes_mb:
        name = None if scorer.fitness else scorer.quality(target)
        value = (lambda c: c.scores[name]) if name else (lambda c: fitness(c.scores))
        smallest = min(feasible, key=lambda c: (c.scores["size_mb"], value(c), c.id))
        for size in config.finalist_sizes_mb:
            if smallest.scores["size_mb"] > size:
                found = f"the smallest found has {smallest.scores['size_mb']:.3f} MB"
                print(f"finalist_sizes_mb: no candidate for {target} is within {size:g} MB; {found}")
        return best_within(feasible, config.finalist_sizes_mb, value) or [smallest]
    if scorer.fitness:
        return sorted(feasible, key=lambda c: (fitness(c.scores), c.id))[: config.n_finalists]
    costs = {score: bound for score, bound in scorer.bounds(target).items() if score in search.cost_bounds}
    near = near_budget(front, costs, config.n_finalists, config.finalist_share)
    return spread(near, scorer.names(target), config.n_finalists)


def _on(target: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry as one target sees it."""
    return {**{key: value for key, value in entry.items() if key != "on"}, **entry["on"][target]}


def finish(search: Search, finalists: dict[str, Any]) -> None:
    """Write finalists.json and the report."""
    from search.report import write_report

    write_json(search.folder / FINALISTS, finalists)
    write_report(search.folder)


def export_candidate(config: DictConfig) -> None:
    """Ship one candidate of a search's journal; fine-tuned weights where it has them, else inherited."""
    folder = Path(config.run) / "search" / job_name(config, "search")
    search = Search(_as_searched(config, folder), folder, True, typed_command())
    space, path = search.scorer.trained.supernet.space, folder / JOURNAL
    if not path.exists():
        raise UserError(f"search: {path} does not exist; a search makes it: python search.py run={config.run}")
    with locked(folder):
        candidates = Journal(path, space).candidates
        if not 0 <= config.export < len(candidates):
            raise UserError(f"export={config.export}: {path} has the candidates 0 to {len(candidates) - 1}")
        files = search.shipyard().ship_candidate(candidates[config.export])
    for kind, file in files.items():
        print(f"{kind}: {file}")
    failed = read_json(files["manifest"])["failed"]
    if failed:
        raise UserError(f"export={config.export}: nothing was written for {', '.join(failed)}")


def _as_searched(config: DictConfig, folder: Path) -> DictConfig:
    """Return the configuration with the targets that a search was for: what it shipped is shipped the same again."""
    if not (folder / CONFIG).exists():
        return config
    kept, result = read_config(folder / CONFIG, "fresh=true"), DictConfig(config)
    for key in ("targets", "exports"):
        if not isinstance(kept.get(key), dict):
            raise UserError(f"{folder / CONFIG} is damaged: it lacks {key}")
        result[key] = kept[key]
    return result


def say_finished(search: Search) -> None:
    """Print the finalists beside the baselines, and where to go from here."""
    content = read_json(search.folder / FINALISTS)
    if search.finished:
        print(f"{search.folder} is finished; fresh=true searches again.")
    columns = ["net", "size MB", "test loss, inherited", "fine-tuned", "accuracy", "decode ms"]
    for target, entries in content["targets"].items():
        rows = [_row(entry) for entry in [*entries["finalists"], *entries["baselines"]]]
        print_table(f"{search.folder}, target {target}", columns, rows)
        _say_what_failed(target, [*entries["finalists"], *entries["baselines"]])
        best = entries["finalists"][0]
        print(f"shipped: {', '.join(str(search.folder / e['export']) for e in entries['finalists'])}")
        print(f"next: open {search.folder / REPORT}, or ship another candidate:")
        where = f"{argument('run', search.config.run)} {argument('search', search.folder.name)}"
        print(f"      python search.py {where} export={best['id']}")


def _say_what_failed(target: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Print which nets their runtime could not run, score or make write text, and the first one's reason."""
    failed = {e["name"]: e["measured"]["reason"] for e in entries if (e["measured"] or {}).get("reason")}
    if failed:
        print(f"{target} failed on {', '.join(failed)}: {next(iter(failed.values()))}")


def _row(entry: dict[str, Any]) -> list[str]:
    inherited, tuned = entry["inherited"], entry["fine_tuned"]
    measured = entry["measured"] or {}
    return [
        entry["name"],
        f"{entry['scores']['size_mb']:.3f}",
        *(f"{scores['test_loss']:.4f}" if scores else "-" for scores in (inherited, tuned)),
        f"{shipped(entry)['test_accuracy']:.2%}",
        f"{measured['decode_ms']:.3f}" if measured.get("built") else "-",
    ]
