"""What scores a genome, in this process or in a worker: supernet, tokens, objectives, hardware models."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from search.evaluation import Evaluator
from search.hurdles import Hurdles
from search.objectives import Objective, TargetObjective, score_name
from search.objectives.quality import Divergence
from search.targets import Runtime
from search.workers import Task
from supernet.config import CONF, build, number, score_names
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.genes import Architecture, Genome
from supernet.hardware import METRICS, HardwareModel, read_hardware
from supernet.losses import best_device
from supernet.run import TrainedSupernet, load_supernet
from supernet.subnet import extract

HARDWARE = "hardware.json"
REMEMBERED = 50_000  # genomes whose known scores are kept


class Scorer:
    """Scores genomes as a search's configuration says.

    Args:
        config: of the search.
        folder: of the search; hardware models are read from there once a score needs them.
    """

    def __init__(self, config: DictConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    @cached_property
    def trained(self) -> TrainedSupernet:
        """The supernet and what came with it."""
        return load_supernet(Path(self.config.run))

    @cached_property
    def data(self) -> TokenData:
        """The tokens the supernet was trained on; a missing cache is built again."""
        return self.trained.tokens()

    @cached_property
    def targets(self) -> dict[str, Runtime]:
        """The runtimes that are searched for, by name."""
        built = {str(name): build(node, name=str(name)) for name, node in self.config.targets.items()}
        for name, target in built.items():
            if not isinstance(target, Runtime):
                raise UserError(f"target={name} cannot be measured here; what is to ship beside belongs in exports")
        if not built:
            raise UserError("target names no runtime (conf/target/)")
        return built

    @cached_property
    def budget(self) -> dict[str, float]:
        """Hard bounds by objective."""
        bounds = self.config.budget
        return {str(name): number(bounds, name) for name in bounds if bounds[name] is not None}

    @cached_property
    def fitness(self) -> dict[str, float]:
        """Weights by objective; empty when selection is by the front."""
        weights = self.config.evolution.get("fitness") or {}
        if not isinstance(weights, Mapping):
            raise UserError(f"evolution.fitness must map scores to weights, got {weights!r} (conf/evolution/fitness/)")
        return {str(name): number(weights, name) for name in weights if weights[name] is not None}

    @cached_property
    def objectives(self) -> dict[str, Objective]:
        """Every objective that something is asked of: to be minimized, held to a budget, or weighted."""
        built: list[Objective] = [build(node) for node in self.config.objectives.values()]
        result = {objective.name: objective for objective in built}
        # Every table has a column for the size.
        for key, names in (("budget", self.budget), ("evolution.fitness", self.fitness), ("objective", ["size_mb"])):
            for name in names:
                path = CONF / "objective" / f"{name}.yaml"
                if not path.exists():
                    raise UserError(f"{key}.{name}: no such score; there are {', '.join(score_names())}")
                if name not in result:
                    result[name] = build(next(iter(OmegaConf.load(path).values())))
        return result

    def name_of(self, objective: Objective, target: str) -> str:
        """Return the name of an objective's score on a target."""
        per_target = isinstance(objective, TargetObjective)
        return score_name(objective.name, target, list(self.targets)) if per_target else objective.name

    def names(self, target: str) -> list[str]:
        """Return the names of the scores that a front on `target` is made of."""
        return [self.name_of(self.objectives[str(name)], target) for name in self.config.objectives]

    def quality(self, target: str) -> str:
        """Return the name of the score that tells which net of a size is the best: the first to need an evaluation.

        Raises:
            UserError: all objectives follow from the architecture.
        """
        for name in self.config.objectives:
            if not self.objectives[str(name)].cheap:
                return self.name_of(self.objectives[str(name)], target)
        raise UserError("finalist_sizes_mb: objective names no quality to choose by, such as divergence")

    def bounds(self, target: str) -> dict[str, float]:
        """Return the budgets by the name of the score on `target`."""
        return {self.name_of(self.objectives[name], target): bound for name, bound in self.budget.items()}

    def violation(self, scores: Mapping[str, float], target: str | None = None) -> float:
        """Return the sum of relative excesses (over a bound of 0: plain ones) over the budgets among the scores.

        Args:
            scores: by name.
            target: whose budgets; by default those of the target on which the excess is least: one
                that fits anywhere is worth keeping.
        """
        if target is None:
            return min(self.violation(scores, name) for name in self.targets)
        bounds = self.bounds(target).items()
        return sum(_excess(scores[name], bound) for name, bound in bounds if name in scores)

    @cached_property
    def needs_hardware(self) -> bool:
        """Whether a score is predicted by the hardware models."""
        return any(metric in self.objectives for metric in METRICS)

    @cached_property
    def hardware(self) -> dict[str, HardwareModel]:
        """The fitted models by target, from the search's hardware.json; empty before it is written."""
        path = self.folder / HARDWARE
        return read_hardware(path) if path.exists() else {}

    def costs(self, architecture: Architecture) -> dict[str, dict[str, float]]:
        """Return by target what follows from the architecture, and what the hardware models predict."""
        inventory = self.trained.supernet.inventory(architecture)
        return {
            name: {
                "kv_bytes_per_token": inventory["kv_values"] * target.kv_bytes_per_value,
                **(self.hardware[name].predict(inventory) if name in self.hardware else {}),
            }
            for name, target in self.targets.items()
        }

    def builds(self, genome: Genome, target: str) -> bool:
        """Return whether a subnet can be exported to a target and loaded there."""
        runtime = self.targets[target]
        with TemporaryDirectory() as folder:
            try:
                decoder = extract(self.trained.supernet, genome)
                path = runtime.export(decoder, self.trained.tokenizer_json, Path(folder), self.trained.tokenizer_files)
            except UserError:
                return False
            return runtime.loads(path) is None

    @cached_property
    def hurdles(self) -> Hurdles:
        """The cheap levels before the last."""
        return Hurdles(self.config.hurdles, self.config.eval_sequences)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scores genomes on the search split."""
        n, length = self.config.eval_sequences, int(self.data.config["sequence_length"])
        device = best_device()
        return Evaluator(
            self.trained.supernet,
            self.data.evaluation_batch("valid", n, length).to(device),
            self.config.eval_batch_size,
            reuse_mb=self.config.reuse_mb,
            hurdles=self.hurdles.sequences,
            divergences=Divergence.name in self.objectives,
            slices=torch.from_numpy(self.data.evaluation_slices("valid", n, length)).to(device),
            targets=list(self.targets),
            costs=self.costs,
            builds=self.builds,
        )

    @property
    def sensitivity_evaluator(self) -> Evaluator:
        """Scores genomes on the gates' split, which the search is not judged on."""
        config, length = self.config, int(self.data.config["sequence_length"])
        rows = self.data.evaluation_batch("gate", config.sensitivity.sequences, length).to(best_device())
        supernet, batch_size = self.trained.supernet, config.eval_batch_size
        return Evaluator(supernet, rows, batch_size, reuse_mb=config.reuse_mb, divergences=True)

    @cached_property
    def known_names(self) -> list[str]:
        """Names of the scores that cost nothing."""
        cheap = [o for o in self.objectives.values() if o.cheap]
        return list(dict.fromkeys(self.name_of(o, target) for target in self.targets for o in cheap))

    def known(self, genome: Genome) -> dict[str, float]:
        """Return the scores that cost nothing."""
        return dict(self._known(genome))

    @cached_property
    def _known(self) -> Callable[[Genome], dict[str, float]]:
        cheap = [o for o in self.objectives.values() if o.cheap]
        # A strategy asks for the same pool of genomes many times.
        return lru_cache(REMEMBERED)(lambda genome: self._scores(genome, cheap))

    def fits(self, genome: Genome) -> bool:
        """Return whether a genome meets the budgets that are known without evaluating it."""
        return self.violation(self.known(genome)) == 0

    def score(self, task: Task) -> dict[str, float]:
        """Return the scores of (genome, level): of a hurdle its divergence, at the last level all objectives."""
        genome, level = task
        if level is not None:
            return {self.hurdles.name(level): self.evaluator.divergence(genome, level)}
        return self._scores(genome, list(self.objectives.values()))

    def _scores(self, genome: Genome, objectives: Sequence[Objective]) -> dict[str, float]:
        evaluation = self.evaluator.evaluation(genome)
        return {name: score for objective in objectives for name, score in objective.scores(evaluation).items()}


def _excess(score: float, bound: float) -> float:
    return max(0.0, score / bound - 1 if bound else score)


def make_scorer(spec: Mapping[str, Any]) -> Callable[[Task], dict[str, float]]:
    """Return what scores tasks in a worker process.

    Args:
        spec: `config` (plain values) and `folder` of the search.
    """
    config = OmegaConf.create(dict(spec["config"]))
    torch.set_num_threads(config.n_threads)
    scorer = Scorer(config, Path(spec["folder"]))
    _ = scorer.evaluator.supernet  # now: a worker that dies while it loads says nothing of a candidate
    return scorer.score
