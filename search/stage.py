"""The steps of `search.py`, in the order it names them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from search.candidate import Candidate, Proposal
from search.evolution import pareto_front
from search.finalists import near_budget, spread
from search.journal import Journal
from search.population import first_population
from search.session import FINALISTS, FRONT, JOURNAL, REPORT, Search, opened
from supernet.cli import argument, print_table, progress, typed_command
from supernet.config import job_name
from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.randomness import generator
from supernet.run import locked

__all__ = ["evolve", "export_candidate", "finish", "measure_front", "opened", "say_finished", "tune_and_ship"]


def evolve(search: Search) -> list[Candidate]:
    """Evaluate candidates until the journal holds as many as asked for; return them."""
    config, space = search.config, search.trained.supernet.space
    journal = Journal(search.folder / JOURNAL, space)
    first = first_population(
        space, search.trained.gates, search.fits, config.evaluations, config.seed, **config.first_population
    )
    strategy = search.make_strategy(first)
    done = 0
    with progress(total=config.evaluations, initial=len(journal.candidates), unit="net", desc="search") as bar:
        while done < config.evaluations:
            rng = generator(config.seed, "ask", strategy.generation)
            proposals = strategy.ask(min(config.batch, config.evaluations - done), rng)
            if not proposals:
                bar.write("the search space holds no further candidate within the budget")
                break
            batch = journal.candidates[done : done + len(proposals)]  # from before a kill
            _check_same(journal, batch, proposals)
            for proposal in proposals[len(batch) :]:
                candidate = _evaluate(search, len(journal.candidates), proposal)
                journal.append([candidate])
                batch = [*batch, candidate]
                bar.update()
            strategy.tell(batch)
            done += len(batch)
            bar.set_postfix(_progress(search, journal.candidates), refresh=False)
    return journal.candidates


def _check_same(journal: Journal, known: Sequence[Candidate], proposals: Sequence[Proposal]) -> None:
    for candidate, proposal in zip(known, proposals, strict=False):
        if candidate.genome != proposal.genome:
            raise UserError(
                f"{journal.path} does not continue: candidate {candidate.id} is not what this version of the program"
                " proposes there; fresh=true starts over"
            )


def _evaluate(search: Search, number: int, proposal: Proposal) -> Candidate:
    evaluation = search.evaluator.evaluation(proposal.genome)
    scores = {objective.name: objective.score(evaluation) for objective in search.objectives}
    return Candidate(number, proposal.genome, scores, search.violation(scores), proposal.lineage)


def _progress(search: Search, candidates: Sequence[Candidate]) -> dict[str, str]:
    front = pareto_front(candidates, search.names)
    if not front:
        return {"feasible": "none"}
    first = search.names[0]
    return {"front": str(len(front)), f"best {first}": f"{front[0].scores[first]:.4f}"}


def measure_front(search: Search, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the non-dominated candidates within the budget; measure some of them, spread over the front.

    Raises:
        UserError: no candidate meets the budget.
    """
    front = pareto_front(candidates, search.names)
    if not front:
        nearest = min(candidates, key=lambda c: c.violation)
        seen = ", ".join(f"{name}={nearest.scores[name]:.4g}" for name in search.budget)
        raise UserError(f"no candidate met the budget {search.budget}; the nearest had {seen}")
    path = search.folder / FRONT
    if path.exists():
        return front
    yard = search.shipyard()
    chosen = {c.id for c in spread(front, search.names, search.config.n_measured)}
    entries = []
    with progress(iterable=front, desc="measure the front", unit="net") as bar:
        for candidate in bar:
            measured = None
            if candidate.id in chosen:
                with tempfile.TemporaryDirectory() as folder:
                    measured = yard.measure(yard.inherited(candidate.genome), Path(folder))
            entries.append(
                {
                    **candidate.to_json(),
                    "architecture": search.trained.supernet.space.decode(candidate.genome),
                    "measured": measured,
                }
            )
    write_json(path, {"targets": {yard.target.name: entries}})
    return front


def tune_and_ship(search: Search, front: Sequence[Candidate]) -> dict[str, Any]:
    """Fine-tune and ship the finalists, judge them and the baselines on `test`; return finalists.json."""
    config, yard = search.config, search.shipyard()
    near = near_budget(front, search.budget, config.n_finalists, config.finalist_share)
    chosen = spread(near, search.names, config.n_finalists)
    shipped = [yard.finalist(candidate) for candidate in chosen]
    compared = [yard.baseline(name, genome) for name, genome in search.trained.supernet.space.baselines()]
    return {"targets": {yard.target.name: {"finalists": shipped, "baselines": compared}}}


def finish(search: Search, finalists: dict[str, Any]) -> None:
    """Write finalists.json and the report."""
    from search.report import write_report

    write_json(search.folder / FINALISTS, finalists)
    write_report(search.folder)


def export_candidate(config: DictConfig) -> None:
    """Ship one candidate of a search's journal; fine-tuned weights where it has them, else inherited."""
    folder = Path(config.run) / "search" / job_name(config, "search")
    search = Search(config, folder, True, typed_command())
    space, path = search.trained.supernet.space, folder / JOURNAL
    if not path.exists():
        raise UserError(f"search: {path} does not exist; a search makes it: python search.py run={config.run}")
    with locked(folder):
        candidates = Journal(path, space).candidates
        if not 0 <= config.export < len(candidates):
            raise UserError(f"export={config.export}: {path} has the candidates 0 to {len(candidates) - 1}")
        shipped = search.shipyard().ship_candidate(candidates[config.export])
    for kind, file in shipped.items():
        print(f"{kind}: {file}")


def say_finished(search: Search) -> None:
    """Print the finalists beside the baselines, and where to go from here."""
    content = read_json(search.folder / FINALISTS)
    if search.finished:
        print(f"{search.folder} is finished; fresh=true searches again.")
    columns = ["net", "size MB", "test loss, inherited", "fine-tuned", "accuracy", "decode ms"]
    for target, entries in content["targets"].items():
        rows = [_row(entry) for entry in [*entries["finalists"], *entries["baselines"]]]
        print_table(f"{search.folder}, target {target}", columns, rows)
        best = entries["finalists"][0]
        print(f"shipped: {', '.join(str(search.folder / e['export']) for e in entries['finalists'])}")
        print(f"next: open {search.folder / REPORT}, or ship another candidate:")
        where = f"{argument('run', search.config.run)} {argument('search', search.folder.name)}"
        print(f"      python search.py {where} export={best['id']}")


def _row(entry: dict[str, Any]) -> list[str]:
    inherited, tuned = entry["inherited"], entry["fine_tuned"]
    measured = entry["measured"] or {}
    return [
        entry["name"],
        f"{entry['scores']['size_mb']:.3f}",
        f"{inherited['test_loss']:.4f}",
        f"{tuned['test_loss']:.4f}" if tuned else "-",
        f"{(tuned or inherited)['test_accuracy']:.2%}",
        f"{measured['decode_ms']:.3f}" if measured.get("built") else "-",
    ]
