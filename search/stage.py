"""The steps of `search.py`, in the order it names them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from search.candidate import Candidate, Proposal
from search.evaluation import MB, Evaluation, Evaluator
from search.evolution import Evolution, pareto_front
from search.finalists import near_budget, spread
from search.journal import Journal
from search.objectives import Objective
from search.population import baselines, first_population
from search.shipping import Shipyard
from supernet.cli import print_table, progress, typed_command
from supernet.config import build
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.genes import Genome
from supernet.randomness import generator
from supernet.run import TrainedSupernet, claim, load_supernet, locked

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
        data = build(OmegaConf.create(self.trained.data["config"]))
        if data.hash != self.trained.data["hash"]:
            raise UserError(f"the corpus of {self.config.run} has changed since training: its hash is now {data.hash}")
        assert isinstance(data, TokenData)
        return data

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
        return {str(name): float(bound) for name, bound in self.config.budget.items() if bound is not None}

    def violation(self, scores: Mapping[str, float]) -> float:
        """Return the sum of relative excesses over the budgets that are among the scores."""
        return sum(max(0.0, scores[name] / bound - 1) for name, bound in self.budget.items() if name in scores)

    def cheap_scores(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the scores that cost nothing."""
        return {o.name: o.score(evaluation) for o in self.objectives if o.cheap}

    def fits(self, genome: Genome) -> bool:
        """Return whether a genome meets the budgets that are known without evaluating it."""
        return self.violation(self.cheap_scores(self.evaluator.evaluation(genome))) == 0

    def shipyard(self) -> Shipyard:
        """Return what tunes, measures and ships."""
        return Shipyard(self.config, self.folder, self.trained, self.data, self.command)


@contextmanager
def opened(config: DictConfig) -> Iterator[Search]:
    """Lock and claim the search directory, having checked what can be checked before anything is spent."""
    torch.set_num_threads(config.n_threads)
    run = Path(config.run)
    trained = load_supernet(run)
    name = str(config.search)
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"search: {name!r} cannot name a directory under {run}/search/")
    folder = run / "search" / name
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    settings = {str(k): v for k, v in settings.items() if k not in ("fresh", "export")}
    search = Search(config, folder, False, typed_command())
    search.__dict__["trained"] = trained
    _check(search)
    with locked(folder):
        finished = claim(folder, settings, config.fresh, folder / REPORT, "fresh=true")
        search.__dict__["finished"] = finished
        yield search


def _check(search: Search) -> None:
    """Refuse what cannot succeed: counts, unknown budgets, a budget below the smallest net, the target."""
    config = search.config
    for key in ("evaluations", "batch", "eval_sequences", "judge_sequences", "eval_batch_size", "n_finalists"):
        if config[key] < 1:
            raise UserError(f"{key} must be 1 or more, got {config[key]} (conf/search.yaml)")
    unknown = set(search.budget) - set(search.names)
    if unknown:
        raise UserError(f"budget.{min(unknown)}: no such score; the objectives give {', '.join(search.names)}")
    supernet = search.trained.supernet
    reachable = supernet.n_bytes(supernet.space.decode(supernet.space.cheapest)) / MB
    bound = search.budget.get("size_mb")
    if bound is not None and bound < reachable:
        raise UserError(f"budget.size_mb={bound}: no subnet is that small; the smallest reachable is {reachable:.3f} MB")
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
    strategy: Evolution = build(config.evolution)(space, search.names, first, config.seed, search.fits)
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
    for candidate in progress(iterable=front, desc="measure the front", unit="net"):
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
    torch.set_num_threads(config.n_threads)
    folder = Path(config.run) / "search" / str(config.search)
    search = Search(config, folder, True, typed_command())
    path = folder / JOURNAL
    if not path.exists():
        load_supernet(Path(config.run))
        raise UserError(f"search: {path} does not exist; a search makes it: python search.py run={config.run}")
    candidates = Journal(path, search.trained.supernet.space).candidates
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
