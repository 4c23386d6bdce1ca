"""The steps of `search.py`, in the order it names them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from search.candidate import Candidate, Proposal
from search.evaluation import MB, Evaluation, Evaluator
from search.evolution import Evolution, pareto_front
from search.finalists import near_budget, spread
from search.journal import Journal
from search.objectives import Objective
from search.population import baselines, first_population
from search.shipping import Shipyard
from supernet.cli import print_table, progress, typed_command
from supernet.config import build, check, check_counts, job_name, number, plain
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.fitting import check_trainer
from supernet.genes import Genome
from supernet.randomness import generator
from supernet.run import TrainedSupernet, already_finished, claim, load_supernet, locked

JOURNAL, FRONT, FINALISTS, REPORT = "journal.jsonl", "front.json", "finalists.json", "report.html"


@dataclass(frozen=True)
class Search:
    """An opened search.

    Attributes:
        config: as composed.
        folder: runs/NAME/search/SEARCH.
        finished: whether its report is written.
        command: what the user typed.
    """

    config: DictConfig
    folder: Path
    finished: bool
    command: str

    @cached_property
    def trained(self) -> TrainedSupernet:
        """The supernet and what came with it."""
        return load_supernet(Path(self.config.run))

    @cached_property
    def data(self) -> TokenData:
        """The tokens the supernet was trained on; a missing cache is built again."""
        return self.trained.tokens()

    @cached_property
    def objectives(self) -> list[Objective]:
        """What is minimized."""
        return [build(node) for node in self.config.objectives.values()]

    @cached_property
    def names(self) -> list[str]:
        """Names of the objectives' scores."""
        return [objective.name for objective in self.objectives]

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scores genomes on the search split."""
        length = int(self.data.config["sequence_length"])
        rows = self.data.evaluation_batch("valid", self.config.eval_sequences, length)
        return Evaluator(self.trained.supernet, rows, self.config.eval_batch_size)

    @cached_property
    def budget(self) -> dict[str, float]:
        """Hard bounds by score."""
        bounds = self.config.budget
        return {str(name): number(bounds, name) for name in bounds if bounds[name] is not None}

    def violation(self, scores: Mapping[str, float]) -> float:
        """Return the sum of relative excesses over the budgets that are among the scores."""
        return sum(max(0.0, scores[name] / bound - 1) for name, bound in self.budget.items() if name in scores)

    def cheap_scores(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the scores that cost nothing."""
        return {o.name: o.score(evaluation) for o in self.objectives if o.cheap}

    def fits(self, genome: Genome) -> bool:
        """Return whether a genome meets the budgets that are known without evaluating it."""
        return self.violation(self.cheap_scores(self.evaluator.evaluation(genome))) == 0

    def make_strategy(self, first: Sequence[Proposal]) -> Evolution:
        """Return what proposes candidates, beginning with `first`."""
        make = build(self.config.evolution)
        return make(self.trained.supernet.space, self.names, first, self.config.seed, self.fits)

    def shipyard(self) -> Shipyard:
        """Return what tunes, measures and ships."""
        return Shipyard(self.config, self.folder, self.trained, self.data, self.command)


@contextmanager
def opened(config: DictConfig) -> Iterator[Search]:
    """Lock and claim the search directory, having checked what can be checked before anything is spent."""
    folder = Path(config.run) / "search" / job_name(config, "search")
    settings = plain(config, but=("fresh", "export"))
    search = Search(config, folder, False, typed_command())
    _check(search)
    torch.set_num_threads(config.n_threads)
    with locked(folder):
        finished = not config.fresh and already_finished(folder, settings, folder / REPORT, "fresh=true")
        search.__dict__["finished"] = finished
        if not finished:
            _ = search.data  # a lost corpus is noticed before anything is kept
            claim(folder, settings, config.fresh, folder / REPORT, "fresh=true")
        yield search


def _check(search: Search) -> None:
    """Refuse what cannot succeed: counts, settings, unknown budgets, one below the smallest net, the target."""
    config = search.config
    check(config)
    check_counts(config)
    if not 0 <= config.finalist_share <= 1:
        raise UserError(f"finalist_share must be from 0 to 1, got {config.finalist_share} (conf/search.yaml)")
    for key in config.first_population:
        if not isinstance(config.first_population[key], int) or config.first_population[key] < 0:
            raise UserError(f"first_population.{key} must be 0 or more, got {config.first_population[key]}")
    for name, bound in search.budget.items():
        if bound <= 0:
            raise UserError(f"budget.{name} must be above 0, got {bound}")
    unknown = set(search.budget) - set(search.names)
    if unknown:
        raise UserError(f"budget.{min(unknown)}: no such score; the objectives give {', '.join(search.names)}")
    supernet = search.trained.supernet
    reachable = supernet.n_bytes(supernet.space.decode(supernet.space.cheapest)) / MB
    limit = search.budget.get("size_mb", reachable)
    if limit < reachable:
        raise UserError(f"budget.size_mb={limit}: no subnet is so small; the smallest reachable is {reachable:.3f} MB")
    search.make_strategy([])
    build(config.finetune, _recursive_=False)
    check_trainer(config.finetune.trainer)
    for node in config.exports.values():
        build(node)
    target = build(config.target)
    for genome in (supernet.space.largest, supernet.space.cheapest):
        reason = target.supports(supernet.space.decode(genome))
        if reason:
            raise UserError(f"target {target.name}: {reason}")


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
    chosen = near_budget(front, search.names, config.n_finalists, config.finalist_share)
    shipped = [yard.finalist(candidate) for candidate in chosen]
    compared = [yard.baseline(name, genome) for name, genome in baselines(search.trained.supernet.space)]
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
        print_table(f"{search.config.run}, {search.config.search}, target {target}", columns, rows)
        best = entries["finalists"][0]
        print(f"shipped: {', '.join(str(search.folder / e['export']) for e in entries['finalists'])}")
        print(f"next: open {search.folder / REPORT}, or ship another candidate:")
        print(f"      python search.py run={search.config.run} search={search.config.search} export={best['id']}")


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
