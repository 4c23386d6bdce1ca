"""Cheap scores with inherited weights, exactly those that the shipped weights give.

Each weight is quantized once per format (`search.frozen`). Candidates that agree in their first blocks have
the same residual stream behind them: it is kept (`search.reuse`), and the next one goes on from there. Rows
are always taken in the same batches, so that not a bit of a score depends on what was evaluated before.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from search.frozen import Network, frozen
from search.reuse import ReuseCache
from supernet.errors import UserError
from supernet.formats import F16, MB
from supernet.genes import Architecture, Genome
from supernet.losses import mean_scores, token_divergences, token_scores
from supernet.model import Supernet

Costs = Callable[[Architecture], Mapping[str, Mapping[str, float]]]
Builds = Callable[[Genome, str], bool]
RECENT = 64  # networks whose token scores are kept from one hurdle to the next
CONTIGUOUS_SLICES = 8  # where the caller names none


class TokenScores(NamedTuple):
    """Of each token of a batch (rows, tokens): loss in nats, hit, and where it is kept KL(largest || network)."""

    losses: Tensor
    hits: Tensor
    divergences: Tensor | None


class Evaluator:
    """Scores genomes on fixed token rows.

    Args:
        supernet: trained.
        rows: token ids (n, tokens + 1) of the search split; networks are scored on their device.
        batch_size: rows at a time.
        reuse_mb: bound on the bytes of the residual streams that are kept, in MB; 0 keeps none.
        hurdles: rows that each hurdle takes, ascending; they are spread over all rows. The largest net's
            log-probabilities on them are kept in float16: 2 bytes x tokens x vocabulary.
        divergences: keep these of all rows, for `Evaluation.divergence`.
        slices: id of the slice of the corpus that each row (n,), or each target token (n, tokens), belongs to;
            by default the rows in order in `CONTIGUOUS_SLICES` equal parts.
        targets: names of the targets.
        costs: predicts by target what an architecture costs there.
        builds: whether a genome can be exported to a target and loaded.
    """

    def __init__(
        self,
        supernet: Supernet,
        rows: Tensor,
        batch_size: int,
        reuse_mb: float = 0,
        hurdles: Sequence[int] = (),
        divergences: bool = False,
        slices: Tensor | None = None,
        targets: Sequence[str] = (),
        costs: Costs | None = None,
        builds: Builds | None = None,
    ) -> None:
        self.trained, self.rows = supernet, rows
        if slices is None:
            slices = torch.arange(len(rows), device=rows.device) * CONTIGUOUS_SLICES // len(rows)
        self.slices = slices if slices.dim() == 2 else slices.unsqueeze(1).expand(-1, rows.shape[1] - 1)
        self.targets, self.costs, self.builds = tuple(targets), costs, builds
        self.cache = ReuseCache(int(reuse_mb * MB))
        hurdles = [min(n, len(rows)) for n in hurdles]
        edges = sorted({*hurdles, *range(0, len(rows), batch_size), len(rows)})  # of the batches
        order = spread_order(len(rows)) if hurdles else list(range(len(rows)))
        self.batches = [torch.tensor(order[a:b], device=rows.device) for a, b in pairwise(edges)]
        self._hurdle_batches = [edges.index(n) for n in hurdles]
        self._diverging = len(self.batches) if divergences else max(self._hurdle_batches, default=0)
        self._recent: OrderedDict[Hashable, dict[int, TokenScores]] = OrderedDict()
        self._full_precision: dict[Hashable, float] = {}

    @cached_property
    def supernet(self) -> Supernet:
        """The supernet with rounded weights, on the rows' device: a copy that is made when a net is first run."""
        return frozen(self.trained, self.rows.device)

    def evaluation(self, genome: Genome) -> "Evaluation":
        """Return the evaluation of a genome; what it costs is paid when a score is read."""
        return Evaluation(self, genome)

    def forget(self) -> None:
        """Drop what is kept of earlier evaluations."""
        self.cache = ReuseCache(self.cache.limit)
        self._recent.clear()
        self._full_precision.clear()

    def divergence(self, genome: Genome, level: int) -> float:
        """Return the mean KL(largest || candidate) in nats per token on the rows of a hurdle, counted from 0."""
        return self.mean_divergence(self.evaluation(genome).network, self._hurdle_batches[level])

    def mean_divergence(self, network: Network, n_batches: int | None = None) -> float:
        """Return the mean KL(largest || network) in nats per token on the first batches, or on all; never below 0."""
        n = len(self.batches) if n_batches is None else n_batches
        assert n <= self._diverging, "an evaluator for divergence needs `divergences`"
        found = (self.token_scores(network, batch).divergences for batch in range(n))
        mean = torch.cat([d for d in found if d is not None]).double().mean().item()
        return max(mean, 0.0)  # below 0 is what half precision makes of it; NaN stays NaN

    def losses(self, network: Network) -> tuple[Tensor, Tensor]:
        """Return loss (float32) and hit of each token of all rows, each (n, tokens)."""
        losses = torch.empty(self.rows[:, 1:].shape, device=self.rows.device)
        hits = torch.empty_like(losses, dtype=torch.bool)
        for batch, rows in enumerate(self.batches):
            losses[rows], hits[rows], _ = self.token_scores(network, batch)
        return losses, hits

    def full_precision_loss(self, architecture: Architecture) -> float:
        """Return the loss of an architecture with F16 for every format; of each structure it is computed once."""
        kinds = {gene.name: gene.kind for gene in self.supernet.space}
        structure: Architecture = {n: F16.name if kinds[n] == "format" else v for n, v in architecture.items()}
        network = Network(self.supernet, structure)
        key = network.key
        if key not in self._full_precision:
            self._full_precision[key] = mean_scores(*self.losses(network))[0]
        return self._full_precision[key]

    @cached_property
    def largest_losses(self) -> Tensor:
        """The largest subnet's loss of each token (n, tokens)."""
        return self.evaluation(self.supernet.space.largest).losses

    @torch.inference_mode()
    def token_scores(self, network: Network, batch: int) -> TokenScores:
        """Return the token scores of a network on a batch; those of the `RECENT` last networks are kept."""
        done = self._recent.setdefault(network.key, {})
        self._recent.move_to_end(network.key)
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        if batch not in done:
            rows, divergences = self.rows[self.batches[batch]], None
            logits = self._logits(network, rows[:, :-1], batch)
            if batch < self._diverging:
                divergences = token_divergences(self._largest[batch], logits)
            done[batch] = TokenScores(*token_scores(logits, rows[:, 1:]), divergences)
        return done[batch]

    def _logits(self, network: Network, tokens: Tensor, batch: int) -> Tensor:
        path = [(batch, key) for key in network.shared]
        n_done, x = self.cache.longest(path)
        if x is None:
            x = F.embedding(tokens, network.embedding.weight)
        fresh = []
        for number in range(n_done, len(network.blocks)):
            x = x + network.block(number)(x, self._rope)  # never in place: x may be kept
            fresh.append(x)
        self.cache.add(path, fresh[: len(path) - n_done])
        return network.logits(x)

    @cached_property
    def _rope(self) -> tuple[Tensor, Tensor]:
        return self.supernet.rope.table(self.rows.shape[1] - 1, self.rows.device)

    @cached_property
    def _largest(self) -> list[Tensor]:
        """Log-probabilities of the largest subnet on the batches that divergences are kept of, in float16."""
        network = self.evaluation(self.supernet.space.largest).network
        rows = [self.rows[self.batches[batch]] for batch in range(self._diverging)]
        logits = (self._logits(network, r[:, :-1], batch) for batch, r in enumerate(rows))
        return [each.float().log_softmax(-1).half() for each in logits]


def spread_order(n: int) -> list[int]:
    """Return 0 to n - 1 so ordered that any first few are spread over the range (van der Corput sequence)."""
    bits = max(1, (n - 1).bit_length())
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [i for i in reversed_bits if i < n]


class Evaluation:
    """One genome under evaluation: objectives read what they need, each thing is computed once."""

    def __init__(self, evaluator: Evaluator, genome: Genome) -> None:
        self.evaluator, self.genome = evaluator, genome

    @cached_property
    def architecture(self) -> Architecture:
        """The decoded genome."""
        space = self.evaluator.trained.space
        return space.decode(space.check(self.genome))

    @cached_property
    def network(self) -> Network:
        """The subnet under the frozen supernet."""
        return Network(self.evaluator.supernet, self.architecture)

    @cached_property
    def size_mb(self) -> float:
        """Bytes of all tensors as shipped, in MB."""
        return float(self.evaluator.trained.n_bytes(self.architecture)) / MB

    @cached_property
    def _token_scores(self) -> tuple[Tensor, Tensor]:
        return self.evaluator.losses(self.network)

    @property
    def losses(self) -> Tensor:
        """Next-token loss in nats of each token (n, tokens), with inherited weights."""
        return self._token_scores[0]

    @cached_property
    def quality(self) -> tuple[float, float]:
        """Mean next-token loss in nats, and accuracy."""
        return mean_scores(*self._token_scores)

    @cached_property
    def divergence(self) -> float:
        """Mean KL(largest || subnet) of the predictions, in nats per token."""
        return self.evaluator.mean_divergence(self.network)

    @cached_property
    def full_precision_loss(self) -> float:
        """Mean loss of the same structure with every weight in F16."""
        return self.evaluator.full_precision_loss(self.architecture)

    @cached_property
    def _costs(self) -> Mapping[str, Mapping[str, float]]:
        return self.evaluator.costs(self.architecture) if self.evaluator.costs else {}

    def cost(self, target: str, name: str) -> float:
        """Return what the hardware model of a target predicts.

        Raises:
            UserError: there is no such prediction.
        """
        costs = self._costs.get(target, {})
        if name not in costs:
            known = ", ".join(costs) or "nothing"
            raise UserError(f"objective {name}: the hardware model of target {target} predicts {known}")
        return float(costs[name])

    def builds(self, target: str) -> bool:
        """Return whether the subnet can be exported to a target and loaded there."""
        assert self.evaluator.builds is not None, "an evaluator for build_failure needs `builds`"
        return self.evaluator.builds(self.genome, target)
