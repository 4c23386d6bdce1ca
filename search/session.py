"""An opened search: its settings, held against each other, and the parts built from them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from omegaconf import DictConfig

from search.candidate import Proposal
from search.evaluation import Evaluation, Evaluator
from search.evolution import Evolution
from search.objectives import Objective
from search.shipping import Shipyard
from search.targets import Runtime
from supernet.cli import typed_command
from supernet.config import build, check, check_counts, job_name, number, plain
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.fitting import check_trainer
from supernet.formats import MB
from supernet.genes import Genome
from supernet.losses import best_device
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
        rows = self.data.evaluation_batch("valid", self.config.eval_sequences, length).to(best_device())
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
        floors = {name: self.config.finalist_share * bound for name, bound in self.budget.items()}
        return make(self.trained.supernet.space, self.names, first, self.config.seed, self.fits, floors=floors)

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
    if not isinstance(build(config.target), Runtime):
        raise UserError(
            f"target={config.target.name} cannot be measured here; what is to ship beside belongs in exports"
        )
    for node in (config.target, *config.exports.values()):
        target = build(node)
        for genome in (supernet.space.largest, supernet.space.cheapest):
            reason = target.supports(supernet.space.decode(genome))
            if reason:
                raise UserError(f"target {target.name}: {reason}")
