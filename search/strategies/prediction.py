"""A cheap model of scores: a Gaussian process over genomes.

Two choices of a gene are alike by how close they are in cost and by whether they are the same. With a(x, y)
as the mean of that over the genes, each weighted by how much it seems to matter, the kernel is a sum of an
additive part a and of one with interactions of any order, exp(-sharpness (1 - a)). A few values of share,
sharpness and noise are compared by marginal likelihood (Rasmussen and Williams, 2006, section 5.4).
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from supernet.genes import Genome, SearchSpace

Array = NDArray[np.float64]
AnyArray = NDArray[np.floating]
SHARES = (0.1, 0.3, 0.6, 0.9)
SHARPNESS = (1.0, 3.0, 8.0)
NOISES = (1e-4, 1e-3, 1e-2, 1e-1)
TRIED_ON = 200  # points on which these are compared at most: 144 factorizations


class Warp:
    """A monotone map of scores to unit variance, about linear where they are good, logarithmic where they are bad.

    A subnet without most of its layers has a loss far from all others; as it is, it would set the scale.
    """

    def __init__(self, scores: Array) -> None:
        self.low = float(scores.min())
        # Many may share the lowest, as with a violation: the scale is that of the others.
        above = scores[scores > self.low] - self.low
        self.half = max(float(np.median(above)), 1e-6 * float(above.max())) if len(above) else 1.0
        logs = self._log(scores)
        self.mean, self.scale = float(logs.mean()), float(logs.std()) or 1.0

    def __call__(self, scores: Array) -> Array:
        """Return warped scores."""
        return (self._log(scores) - self.mean) / self.scale

    def inverse(self, warped: Array) -> Array:
        """Return the scores that warp to `warped`."""
        logs = np.minimum(warped * self.scale + self.mean, 50.0)
        return self.half * (np.exp(logs) - 1) + self.low

    def _log(self, scores: Array) -> Array:
        # A score below all that were seen may be met later: stay above the pole at low - half.
        return np.log(np.maximum((scores - self.low) / self.half + 1, 1e-2))


class Embedding:
    """Genomes as rows of numbers whose weighted products are similarities."""

    def __init__(self, space: SearchSpace) -> None:
        self.sizes = [len(gene.choices) for gene in space]
        self.free = [i for i, size in enumerate(self.sizes) if size > 1]
        self.offsets = np.cumsum([0, *(self.sizes[i] for i in self.free)])
        self.gene = np.repeat(np.arange(len(self.free)), [self.sizes[i] for i in self.free])
        alike = np.zeros((self.offsets[-1], self.offsets[-1]))
        for start, i in zip(self.offsets, self.free, strict=False):
            level = np.linspace(0, 1, self.sizes[i])
            block = 0.5 * np.eye(len(level)) + 0.5 * (1 - np.abs(level[:, None] - level[None, :]))
            alike[start : start + len(level), start : start + len(level)] = block
        self.alike = alike

    def __call__(self, genomes: Sequence[Genome]) -> Array:
        """Return one row per genome: 1 at each gene's choice, 0 elsewhere."""
        indices = np.array(genomes)[:, self.free] + self.offsets[:-1]
        rows = np.zeros((len(genomes), self.offsets[-1]))
        np.put_along_axis(rows, indices, 1.0, axis=1)
        return rows

    def similarity(self, left: Array, right: Array, weights: Array) -> Array:
        """Return a(x, y) of each row on the left to each on the right; `weights` of the genes sum to 1."""
        return (left * weights[self.gene]) @ self.alike @ right.T

    def importance(self, rows: Array, targets: Array) -> Array:
        """Return each gene's share of the variance that genes explain one by one, by a ridge regression."""
        centered = rows - rows.mean(0)
        # The ridge keeps choices that were rarely seen, or always together, from making up effects.
        gram = centered.T @ centered + 0.05 * len(rows) * np.eye(rows.shape[1])
        effects = centered * np.linalg.solve(gram, centered.T @ targets)
        variance = np.array([effects[:, self.gene == k].sum(1).var() for k in range(len(self.free))])
        return variance / (variance.sum() or 1.0)


class Model:
    """A Gaussian process fitted to (genome, target) pairs.

    Args:
        embedding: of the space.
        rows: embedded genomes (n, width).
        targets: of about zero mean and unit variance (n).
    """

    def __init__(self, embedding: Embedding, rows: Array, targets: Array) -> None:
        self.embedding, self.rows = embedding, rows
        importance = embedding.importance(rows, targets)
        even = np.full(len(importance), 1 / max(1, len(importance)))
        self.weights = even
        step = -(-len(rows) // TRIED_ON)
        best = -np.inf
        for weights in (even, 0.5 * even + 0.5 * importance, 0.1 * even + 0.9 * importance):
            alike = embedding.similarity(rows[::step], rows[::step], weights)
            for setting in product(SHARES, SHARPNESS, NOISES):
                likelihood = _likelihood(alike, targets[::step], *setting)
                if likelihood > best:
                    best, self.weights, self.setting = likelihood, weights, setting
        share, sharpness, noise = self.setting
        kernel = _kernel(embedding.similarity(rows, rows, self.weights), share, sharpness)
        self.factor = np.linalg.cholesky(kernel + noise * np.eye(len(rows)))
        self.solved = _solve(self.factor, _solve(self.factor, targets), transposed=True)

    def mean(self, rows: Array) -> Array:
        """Return the expected targets of embedded genomes."""
        return self._kernel(rows, self.rows) @ self.solved

    def draw(self, rows: Array, n: int, rng: np.random.Generator) -> Array:
        """Return `n` joint draws (n, rows) of the targets of embedded genomes."""
        cross = self._kernel(rows, self.rows)
        half = _solve(self.factor, cross.T)
        covariance = self._kernel(rows, rows) - half.T @ half
        # Rounding and equal rows would make it indefinite.
        factor = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(rows)))
        return (cross @ self.solved)[None, :] + rng.standard_normal((n, len(rows))) @ factor.T

    def _kernel(self, left: Array, right: Array) -> Array:
        return _kernel(self.embedding.similarity(left, right, self.weights), *self.setting[:2])


def _kernel(alike: Array, share: float, sharpness: float) -> Array:
    # The additive part's level would be confounded with the mean; a prior variance of 4 leaves it free.
    return 4 * (1 - share) * alike + share * np.exp(sharpness * (alike - 1))


def _likelihood(alike: Array, targets: Array, share: float, sharpness: float, noise: float) -> float:
    factor = np.linalg.cholesky(_kernel(alike, share, sharpness) + noise * np.eye(len(alike)))
    whitened = _solve(factor, targets)
    return float(-0.5 * whitened @ whitened - np.log(np.diag(factor)).sum())


def _solve(factor: AnyArray, right: AnyArray, transposed: bool = False) -> Array:
    from scipy.linalg import solve_triangular

    return solve_triangular(factor, right, lower=True, trans=int(transposed), check_finite=False)
