"""An opened search: its settings, held against each other, and the parts built from them."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from search import allocation
from search.ahead import make_tuner
from search.candidate import Proposal
from search.evolution import Evolution
from search.hardware import measure_hardware, measured_elsewhere
from search.profile import SENSITIVITY, Profile
from search.reach import check_costs, check_sizes
from search.scoring import HARDWARE, Scorer, make_scorer
from search.sensitivity import check_profile, measure_sensitivity
from search.shipping import NETS, Shipyard
from search.strategies.sensitivity import Sensitivity
from search.strategies.sequential import Sequential
from search.subspace import check_kinds
from search.workers import MakeScorer, Workers, check_workers, make_workers
from supernet.claims import already_finished, changed, check_sources, claim, locked
from supernet.cli import typed_command
from supernet.config import build, check, check_counts, job_name, plain
from supernet.errors import UserError
from supernet.fitting import check_trainer
from supernet.formats import Q8_0
from supernet.genes import KINDS, Architecture, Genome, SearchSpace
from supernet.hardware import MIN_PROBES
from supernet.tokenizer import Tokenization

JOURNAL, FRONT, FINALISTS, REPORT = "journal.jsonl", "front.json", "finalists.json", "report.html"
# Those that only what is in nets/ depends on: free, too, until a search is finished.
TUNING = ("finetune.*", "judge_sequences", "baselines")
# Patterns of settings that no candidate's score and no finalist's weights depend on: a search goes on with others.
FREE = ("run", "search", "workers", "ray.*", "worker_timeout_s", "reuse_mb", "prompt", "targets.*.timeout_s")


@dataclass
class Search:
    """An opened search.

    Attributes:
        config: as composed.
        folder: runs/NAME/search/SEARCH.
        finished: whether its report is written.
        command: what the user typed.
        profile: what each choice is worth by itself, once measured.
    """

    config: DictConfig
    folder: Path
    finished: bool
    command: str
    profile: Profile | None = None

    @cached_property
    def scorer(self) -> Scorer:
        """What scores genomes in this process."""
        return Scorer(self.config, self.folder)

    @cached_property
    def names(self) -> list[str]:
        """Names of the scores to minimize, of all targets."""
        return list(dict.fromkeys(name for target in self.scorer.targets for name in self.scorer.names(target)))

    @cached_property
    def cost_bounds(self) -> dict[str, float]:
        """The budgets on costs, by score: what a net may spend, unlike a bound on its quality."""
        scorer = self.scorer
        costs = [o for name, o in scorer.objectives.items() if name in scorer.budget and o.cheap]
        return {scorer.name_of(o, target): scorer.budget[o.name] for target in scorer.targets for o in costs}

    @cached_property
    def floors(self) -> dict[str, float]:
        """Scores below which there is nothing to gain: whoever may spend 2 MB has no use for 0.1 MB."""
        bounds, sizes = self.cost_bounds, self.config.finalist_sizes_mb
        if sizes:
            bounds = {**bounds, "size_mb": min([*sizes, bounds.get("size_mb", math.inf)])}
        return {name: self.config.finalist_share * bound for name, bound in bounds.items()}

    def workers(self) -> Workers:
        """Return the pool that scores candidates; the pool of one is this process."""
        make = make_scorer if self.config.workers != 1 else lambda _: self.scorer.score
        return self._pool(make, self.config.worker_timeout_s)

    def tuners(self) -> Workers:
        """Return the pool that fine-tunes nets, which may take as long as it takes."""
        return self._pool(make_tuner, math.inf)

    def _pool(self, make: MakeScorer, timeout_s: float) -> Workers:
        config = self.config
        spec = {"config": plain(config, but=()), "folder": str(self.folder), "command": self.command}
        return make_workers(
            config.workers,
            make,
            spec,
            n_threads=config.n_threads,
            timeout_s=timeout_s,
            ray_address=config.ray.address,
            ray_workers=config.ray.workers,
        )

    def make_strategy(self, first: Sequence[Proposal]) -> Evolution:
        """Return what proposes candidates, beginning with `first`."""
        scorer, make = self.scorer, build(self.config.evolution)
        strategy = make(
            scorer.trained.supernet.space,
            self.names,
            first,
            self.config.seed,
            fits=scorer.fits,
            known=scorer.known,
            floors=self.floors,
            evaluations=self.config.evaluations,
            preferences=self.preferences,
        )
        assert isinstance(strategy, Evolution)
        return strategy

    def prepare_hardware(self) -> None:
        """Measure what the hardware models are fitted to, unless it is there or no score needs it.

        Raises:
            UserError: a target cannot be measured, or no subnet meets a budget on what it predicts.
        """
        scorer, config = self.scorer, self.config
        if scorer.needs_hardware:
            for target in scorer.targets.values():
                measure_hardware(scorer.trained, target, self.folder / HARDWARE, config.n_probes, config.seed)
        check_costs(scorer, self.make_strategy([]))

    def profile_sensitivity(self) -> None:
        """Measure what each choice of each gene is worth by itself, unless it is known or not asked for."""
        if self.config.sensitivity.sequences:
            path = self.folder / SENSITIVITY
            self.profile = measure_sensitivity(self.scorer.sensitivity_evaluator, path)

    @property
    def preferences(self) -> list[list[float]] | None:
        """How far each choice of each gene is to be preferred by its sensitivity; None without a profile."""
        if self.profile is None:
            return None
        return allocation.preferences(self.profile.space, self.profile.divergences, self.profile.saved)

    @property
    def solutions(self) -> Callable[[int], list[tuple[str, Genome]]] | None:
        """What the linear program over the sensitivities finds, as (label, genome); None without a profile.

        Each target's budgets on costs are met. Without any, sizes are spread over the whole range. Kinds of
        genes that the strategy holds are as in the largest net.
        """
        profile, scorer = self.profile, self.scorer
        if profile is None:
            return None

        def solve(n: int) -> list[tuple[str, Genome]]:
            kinds = check_kinds(self.config.evolution.get("vary", KINDS), "evolution.vary")
            program = allocation.Allocation(profile.space, profile.divergences, scorer.known, kinds)
            held = [
                {name: bound for name, bound in scorer.bounds(target).items() if name in self.cost_bounds}
                for target in scorer.targets
            ]
            different = [held[i] for i in range(len(held)) if held[i] not in held[:i]]
            each, share, found = -(-n // len(different)), self.config.finalist_share, []
            sizes = self.config.finalist_sizes_mb
            if sizes:  # a solution for each, the others between them
                smaller = [{**b, "size_mb": min(size, b.get("size_mb", size))} for b in different for size in sizes]
                different = [{**b, "size_mb": min(max(sizes), b.get("size_mb", math.inf))} for b in different]
                found, share = allocation.solutions(program, smaller), min(sizes) / max(sizes)
            rest = [seed for b in different for seed in allocation.seeds(program, b, share, each)]
            return [*found, *rest][: max(n, len(found))]

        return solve

    def shipyard(self) -> Shipyard:
        """Return what tunes, measures and ships."""
        return Shipyard(self.config, self.folder, self.scorer, self.command)


@contextmanager
def opened(config: DictConfig) -> Iterator[Search]:
    """Lock and claim the search directory, having checked what can be checked before anything is spent."""
    folder = Path(config.run) / "search" / job_name(config, "search")
    search = Search(config, folder, False, typed_command())
    _check(search)
    if config.fresh:
        check_sources(folder, {f"targets.{name}.hardware": t.hardware for name, t in search.scorer.targets.items()})
    settings = _settings(config)
    torch.set_num_threads(config.n_threads)
    with locked(folder):
        free = FREE if (folder / REPORT).exists() else (*FREE, *TUNING)
        search.finished = not config.fresh and already_finished(folder, settings, folder / REPORT, "fresh=true", free)
        if not search.finished:
            _ = search.scorer.data  # a lost corpus is noticed before anything is kept
            retuned = [] if config.fresh else changed(folder, settings, "fresh=true", TUNING)
            if retuned and (folder / NETS).exists():
                print(f"{', '.join(retuned)}: changed, so all fine-tuning begins again")
                shutil.rmtree(folder / NETS)
            claim(folder, settings, config.fresh, folder / REPORT, "fresh=true", free)
        yield search


def _settings(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a search; a bound or weight that is not set is none."""
    settings = plain(config, but=("fresh", "export"))
    for unset in (settings, settings["evolution"]):
        for key in unset.keys() & {"budget", "fitness"}:
            unset[key] = {name: value for name, value in (unset[key] or {}).items() if value is not None}
    return settings


def _check(search: Search) -> None:
    """Refuse what cannot succeed: counts, settings, unknown scores, a budget below the smallest net, a target."""
    config, scorer = search.config, search.scorer
    check(config)
    check_counts(config)
    if not 0 <= config.finalist_share <= 1:
        raise UserError(f"finalist_share must be from 0 to 1, got {config.finalist_share} (conf/search.yaml)")
    if not 0 <= config.reuse_mb < math.inf:
        raise UserError(f"reuse_mb must be 0 (nothing is kept) or more, got {config.reuse_mb} (conf/search.yaml)")
    for key in config.first_population:
        if not isinstance(config.first_population[key], int) or config.first_population[key] < 0:
            raise UserError(f"first_population.{key} must be 0 or more, got {config.first_population[key]}")
    check_profile(config)
    for name, bound in scorer.budget.items():
        if bound < 0:
            raise UserError(f"budget.{name} must be 0 or more, got {bound}")
    if not config.objectives:
        raise UserError("objective names nothing to minimize: objective=[divergence,size_mb] is the default")
    supernet, strategy = scorer.trained.supernet, search.make_strategy([])
    if scorer.objectives and scorer.hurdles.sequences and isinstance(strategy, Sequential):
        raise UserError(
            "evolution=sequential counts structures in the format it will give them, hurdles as they are, in F16:"
            " hurdles must be off (hurdles=none)"
        )
    if isinstance(strategy, Sensitivity) and not (config.sensitivity.sequences and config.first_population.sensitivity):
        raise UserError(
            "evolution=sensitivity evaluates what the linear program over sensitivities finds: sensitivity.sequences"
            " must be 2 or more and first_population.sensitivity 1 or more (first_population=sensitivity)"
        )
    check_sizes(scorer, strategy, config.finalist_sizes_mb)
    if "build_failure" in scorer.objectives:
        for target in scorer.targets.values():
            missing = target.available()
            if missing:
                raise UserError(f"build_failure: {missing}")
    if config.n_probes < MIN_PROBES:
        raise UserError(f"n_probes must be {MIN_PROBES} or more, got {config.n_probes} (conf/search.yaml)")
    if not isinstance(config.ray, DictConfig):
        raise UserError(f"ray must have address and workers, got {config.ray!r} (conf/search.yaml)")
    check_workers(config.workers, config.worker_timeout_s, config.ray.workers)
    build(config.finetune, _recursive_=False)
    check_trainer(config.finetune.trainer)
    for target in scorer.targets.values():
        if target.kv_format == Q8_0.name and supernet.head_dim % Q8_0.group:
            least = f"heads of a multiple of {Q8_0.group} channels, these have {supernet.head_dim}"
            raise UserError(f"target {target.name}: a key-value cache in Q8_0 needs {least}")
        kept = not config.fresh and (search.folder / HARDWARE).exists()  # a copy, which this search goes on with
        if target.hardware is not None and not kept:
            measured_elsewhere(scorer.trained, target)
        if config.finalist_sizes_mb and not scorer.fitness:
            _ = scorer.quality(target.name)
    exports = {str(name): build(node, name=str(name)) for name, node in config.exports.items()}
    tokenization = Tokenization(scorer.trained.tokenizer_json, scorer.trained.tokenizer_files)
    for target in [*scorer.targets.values(), *exports.values()]:
        reasons = (target.supports(architecture) for architecture in _each_choice(supernet.space))
        reason = next(filter(None, reasons), target.supports_tokenizer(tokenization, supernet.vocab_size))
        if reason:
            raise UserError(f"target {target.name}: {reason}")


def _each_choice(space: SearchSpace) -> Iterator[Architecture]:
    """Yield architectures that between them hold every choice of every gene, possible together or not."""
    for i in range(max(len(gene.choices) for gene in space)):
        yield {gene.name: gene.choices[min(i, len(gene.choices) - 1)] for gene in space}
