"""Hurdles: candidates are judged on few tokens first, and only the best go on to more.

At a hurdle a candidate is judged by its divergence from the largest subnet, KL(largest || candidate) on the
same tokens for all. Against the loss it has the advantage that much of the chance in a few tokens is in the
largest's predictions too. Candidates compare as the search compares them, with the divergence in place of
what is not known yet; and not only within their batch but with all that reached the hurdle before, since of
several objectives many candidates of one batch are the best in some mix. No torch, no model.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from search.candidate import Candidate, Lineage
from search.evolution import ranks, weighted
from supernet.errors import UserError

Diverge = Callable[[Sequence[int], int], Iterable[float | str]]
Violation = Callable[[Mapping[str, float]], float]


class Hurdles:
    """What a candidate has to pass before it is scored on all sequences.

    Args:
        settings: `levels`, each with `sequences` and `keep` (conf/hurdles/).
        eval_sequences: of the last level, which is no hurdle.

    Attributes:
        sequences: of each hurdle.
        keep: of all candidates that reached each hurdle so far, the share, rounded up, that one has to be in.

    Raises:
        UserError: sequences that do not ascend from 1 to less than `eval_sequences`, a share out of range.
    """

    def __init__(self, settings: Mapping[str, Any], eval_sequences: int) -> None:
        if not isinstance(settings, Mapping) or not isinstance(settings.get("levels"), Sequence):
            raise UserError(f"hurdles.levels must be a list, got {settings} (conf/hurdles/)")
        levels = list(settings["levels"])
        for number, level in enumerate(levels):
            if not isinstance(level, Mapping) or set(level) != {"sequences", "keep"}:
                raise UserError(f"hurdles.levels[{number}] must have sequences and keep, got {level} (conf/hurdles/)")
        self.sequences = [level["sequences"] for level in levels]
        self.keep = [level["keep"] for level in levels]
        for number, (sequences, keep) in enumerate(zip(self.sequences, self.keep, strict=True)):
            where, least = f"hurdles.levels[{number}]", self.sequences[number - 1] + 1 if number else 1
            if not _is_number(sequences, int) or not least <= sequences < eval_sequences:
                raise UserError(
                    f"{where}.sequences must ascend and be below eval_sequences={eval_sequences}:"
                    f" {least} to {eval_sequences - 1}, got {sequences!r} (conf/hurdles/)"
                )
            if not _is_number(keep, int | float) or not 0 < keep <= 1:
                raise UserError(f"{where}.keep must be above 0 and at most 1, got {keep!r} (conf/hurdles/)")

    def __len__(self) -> int:
        return len(self.keep)

    @staticmethod
    def name(level: int) -> str:
        """Return the name of the divergence at a hurdle, `divergence_1` at the first, `level` 0."""
        return f"divergence_{level + 1}"

    def survivors(
        self,
        level: int,
        scores: Sequence[Mapping[str, float]],
        earlier: Sequence[Mapping[str, float]],
        known: Collection[str],
        objectives: Sequence[str],
        violation: Violation,
        floors: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> list[int]:
        """Return the positions of the candidates that pass a hurdle, in order; at least one does.

        The smaller violation wins, then the non-dominated rank by divergence and known objectives (with weights
        the fitness, of known scores and the divergence in place of the loss), then the divergence, then who
        came first.

        Args:
            level: of the hurdle, from 0.
            scores: of the candidates of a batch that reached it. Scores that are neither `known` nor the
                hurdle's divergence are not looked at: candidates of a journal, with all they have, compare
                as they did.
            earlier: scores of all candidates of earlier batches; those that did not reach it are left out.
            known: names of the scores that cost nothing.
            objectives: names of the scores that are minimized.
            violation: of the budgets that are among the scores it is given.
            floors: scores below which there is nothing to gain.
            weights: of a fitness.
        """
        name = self.name(level)
        reached = [*(s for s in earlier if name in s), *scores]
        visible = [{n: float(v) for n, v in s.items() if n == name or n in known} for s in reached]
        candidates = [Candidate(i, (), s, violation(s), Lineage(0, "")) for i, s in enumerate(visible)]
        if weights:
            counted = {key: weight for key, weight in weights.items() if any(n.partition("@")[0] == key for n in known)}
            counted[name] = weights.get("loss", weights.get("divergence", 1.0))
            order = [(c.violation, float(weighted(counted, c.scores)), 0.0) for c in candidates]
        else:
            order = ranks(candidates, [name, *(n for n in objectives if n in known)], floors or {})
        best = sorted(candidates, key=lambda c: (*order[c.id][:2], c.scores[name], c.id))
        n_earlier = len(reached) - len(scores)
        n_kept = math.ceil(round(self.keep[level] * len(reached), 9))  # 0.15 x 20 is 3, not 3.0000000000000004
        passed = [c.id - n_earlier for c in best[:n_kept] if c.id >= n_earlier]
        return sorted(passed) or [next(c.id - n_earlier for c in best if c.id >= n_earlier)]

    def run(
        self,
        scores: Sequence[dict[str, float]],
        earlier: Sequence[Mapping[str, float]],
        diverge: Diverge,
        known: Collection[str],
        objectives: Sequence[str],
        violation: Violation,
        floors: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        failed: Mapping[int, str] | None = None,
    ) -> dict[int, str]:
        """Take a batch over all hurdles; return by position why candidates go no further.

        Candidates that a journal holds already take part with the divergences there, so a search that was
        killed within a batch stops the same ones.

        Args:
            scores: of every candidate of the batch, the known ones at least; divergences are added to them.
            earlier: see `survivors`.
            diverge: returns the divergences of the candidates at some positions at a level, in order; a text
                in place of a number says why there is none, and stops the candidate.
            known: see `survivors`.
            objectives: see `survivors`.
            violation: see `survivors`.
            floors: see `survivors`.
            weights: see `survivors`.
            failed: candidates of the journal that failed, and why; they take part as far as they got.
        """
        out, failures = dict[int, str](), dict(failed or {})
        for level in range(len(self)):
            name = self.name(level)
            missing = [i for i, s in enumerate(scores) if i not in out and i not in failures and name not in s]
            for i, result in zip(missing, diverge(missing, level) if missing else (), strict=True):
                if isinstance(result, str):
                    failures[i] = result
                else:
                    scores[i][name] = result
            running = [i for i, s in enumerate(scores) if i not in out and name in s]
            if running:
                reached = [scores[i] for i in running]
                kept = self.survivors(level, reached, earlier, known, objectives, violation, floors, weights)
                passed = {running[k] for k in kept}
                out |= {i: f"hurdle {level + 1}" for i in running if i not in passed}
        return out | failures


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
