"""What each choice is worth: how much the loss rises when one gene alone takes it, all else as in the largest net.

Inherited weights, on rows of the `gate` split: what the search is guided by is not what it is judged on. A
choice's worth is read by perturbation, as in DARTS-PT (arXiv 2108.04392), not from the gates' probabilities. Beside
the rise of the loss stands KL(largest || net): where the largest net is calibrated the two are equal in expectation,
but the divergence has far less chance in it, so that is what the linear program adds up.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from search.evaluation import Evaluator
from search.findings import findings
from search.profile import Profile, read_profile
from supernet.cli import progress
from supernet.errors import UserError
from supernet.files import Parts, write_json
from supernet.genes import Genome, SearchSpace


def check_profile(config: DictConfig) -> None:
    """Refuse settings of the sensitivity profile that mean nothing, or that need it where there is none."""
    settings = config.sensitivity
    if not isinstance(settings, DictConfig) or list(settings) != ["sequences"]:
        raise UserError(f"sensitivity must have sequences alone, got {settings!r} (conf/search.yaml)")
    n = settings.sequences
    if not isinstance(n, int) or n < 0 or n == 1:  # of a single sequence there is no standard error
        raise UserError(f"sensitivity.sequences must be 0 (no profile) or 2 or more, got {n!r} (conf/search.yaml)")
    if config.evolution.get("bias") and not n:
        raise UserError("evolution.bias needs a sensitivity profile: sensitivity.sequences must be 2 or more")


def measure_sensitivity(evaluator: Evaluator, path: Path) -> Profile:
    """Return the profile, measured now unless `path` holds it; it is whole or absent, what a kill left beside it.

    Args:
        evaluator: of the trained supernet, on rows of the `gate` split; it must keep divergences.
        path: of sensitivity.json.

    Raises:
        UserError: the file belongs to another search space or is damaged, or there are too few rows.
    """
    space, parts = evaluator.trained.space, Parts(path)
    if path.exists():
        parts.done()
        return read_profile(path, space)
    n, length = len(evaluator.rows), evaluator.rows.shape[1] - 1
    if n < 2:
        raise UserError("sensitivity: split gate has a single sequence; sensitivity.sequences=0 leaves the profile out")
    largest = space.largest
    single = {(i, k): _alone(space, i, k) for i, gene in enumerate(space) for k in range(len(gene.choices))}
    wanted = {largest, *(genome for genome in single.values() if genome is not None)}
    losses, divergences = dict[Genome, Tensor](), dict[Genome, float]()
    # From the last gene to the first: what a net shares with the largest shrinks, and is in the cache while it does.
    with progress(iterable=sorted(wanted, reverse=True), desc="sensitivity", unit="net") as bar:
        for genome in bar:
            found = parts.part(" ".join(map(str, genome)), partial(_scores, evaluator, genome))
            losses[genome] = torch.tensor(found["losses"], dtype=torch.float64)
            divergences[genome] = found["divergence"]
    divergences[largest] = 0.0  # what it differs from itself is how its precision rounds
    n_bytes = {genome: float(evaluator.trained.n_bytes(space.decode(genome))) for genome in losses}
    genes = []
    for i, gene in enumerate(space):
        nets = [single[i, k] for k in range(len(gene.choices))]
        rises = [_rise(losses[net] - losses[largest]) if net is not None else (None, None) for net in nets]
        genes.append(
            {
                "name": gene.name,
                "kind": gene.kind,
                "choices": list(gene.choices),
                "rise": [rise for rise, _ in rises],
                "standard_error": [error for _, error in rises],
                "divergence": [_finite(divergences[net]) if net is not None else None for net in nets],
                "bytes_saved": [n_bytes[largest] - n_bytes[net] if net is not None else 0.0 for net in nets],
            }
        )
    reference = {"genome": list(largest), "loss": losses[largest].mean().item(), "bytes": n_bytes[largest]}
    content: dict[str, Any] = {
        "split": "gate",
        "sequences": n,
        "sequence_length": length,
        "reference": reference,
        "genes": genes,
    }
    content["findings"] = findings(space, content)
    write_json(path, content)
    parts.done()
    for line in content["findings"]:
        print(line)
    return Profile(space, content)


def _alone(space: SearchSpace, position: int, index: int) -> Genome | None:
    """Return the largest genome with one gene changed; None if the largest net cannot take that choice."""
    genome = space.canonical([index if i == position else k for i, k in enumerate(space.largest)])
    return genome if genome[position] == index else None


def _scores(evaluator: Evaluator, genome: Genome) -> dict[str, Any]:
    """Return the mean loss of each sequence, and the divergence from the largest net."""
    evaluation = evaluator.evaluation(genome)
    return {"losses": evaluation.losses.double().mean(1).tolist(), "divergence": evaluation.divergence}


def _rise(differences: Tensor) -> tuple[float | None, float | None]:
    """Return mean and standard error of differences (n,), paired by sequence."""
    mean, error = differences.mean().item(), differences.std().item() / math.sqrt(len(differences))
    return (mean, error) if math.isfinite(mean) else (None, None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
