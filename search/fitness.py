"""Fitness: the weighted sum of scores."""

from collections.abc import Collection, Mapping
from typing import Any

from supernet.errors import UserError


def matching(scores: Collection[str], key: str) -> list[str]:
    """Return the names of the scores that a weight's key means: itself, or one `key@TARGET` for each target.

    Raises:
        UserError: there is none.
    """
    names = [name for name in scores if name.partition("@")[0] == key or name == key]
    if not names:
        raise UserError(f"evolution.fitness.{key}: no such score; candidates have {', '.join(sorted(scores))}")
    return names


def weighted(weights: Mapping[str, float], scores: Mapping[str, Any]) -> Any:
    """Return the weighted sum of scores (numbers, or arrays of the same shape).

    Raises:
        UserError: a weight is on a score that is not there.
    """
    total: Any = 0.0
    for key, weight in weights.items():
        names = matching(scores, key)
        total += weight * sum(scores[n] for n in names) / len(names)
    return total


def checked_weights(fitness: Mapping[str, float | None]) -> dict[str, float]:
    """Return the weights that are set.

    Raises:
        UserError: one is no number.
    """
    weights = {str(key): weight for key, weight in fitness.items() if weight is not None}
    for key, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"evolution.fitness.{key} must be a number, got {weight!r}")
    return weights
