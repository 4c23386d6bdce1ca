"""Entries of finalists.json: which of their weights ship."""

import math
from collections.abc import Mapping
from typing import Any


def all_finite(scores: Mapping[str, Any]) -> bool:
    """Return whether scores are all numbers, as JSON knows them."""
    return all(all_finite(score) if isinstance(score, Mapping) else math.isfinite(score) for score in scores.values())


def ships_tuned(entry: Mapping[str, Any]) -> bool:
    """Return whether the fine-tuned weights ship: where there are some, unless `valid` says that it made them worse."""
    inherited, tuned = entry.get("inherited"), entry.get("fine_tuned")
    if not tuned or not inherited:
        return bool(tuned)
    return bool(tuned["valid_loss"] < inherited["valid_loss"])


def shipped(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the scores of the weights that ship; empty where nothing is known."""
    return entry["fine_tuned"] if ships_tuned(entry) else entry.get("inherited") or {}
