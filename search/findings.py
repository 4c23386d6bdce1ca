"""A sensitivity profile in words: few lines, each of them true of every gene it names. No torch, no model."""

from collections.abc import Mapping, Sequence
from typing import Any

from supernet.genes import Gene, SearchSpace

SHARE = 0.005  # of the loss: a smaller rise is tolerated,
ERRORS = 2.0  # and so is one of fewer standard errors: it may be none
RANGE = "–"


def tolerance(content: Mapping[str, Any]) -> float:
    """Return the rise of the loss in nats below which a choice is tolerated, standard errors aside."""
    return SHARE * float(content["reference"]["loss"])


def findings(space: SearchSpace, content: Mapping[str, Any]) -> list[str]:
    """Return what is meant by tolerated, what all of it costs, and a line for parts with the same truth; formats first.

    A choice is tolerated where it alone raises the loss by less than `SHARE` of it or `ERRORS` standard errors; a
    gene tolerates a choice if it tolerates all dearer ones as well. At once, divergences add up (as in the linear
    program).

    Args:
        space: the genes.
        content: of sensitivity.json.
    """
    loss, limit = float(content["reference"]["loss"]), tolerance(content)
    by_name = {entry["name"]: entry for entry in content["genes"]}
    parts: dict[str, list[tuple[int | None, Gene]]] = {}
    for gene in space:
        if len(gene.choices) > 1:
            number, part = _place(gene.name)
            parts.setdefault(part, []).append((number, gene))
    lines = [
        f"Tolerated: what alone raises the largest net's loss ({loss:.3f} nats) by less than {SHARE:.1%}"
        f" ({limit:.4f} nats) or {ERRORS:g} standard errors."
    ]
    true_of: dict[str, list[str]] = {}
    found: dict[str, int] = {}
    for part, genes in sorted(parts.items(), key=lambda item: item[1][0][1].kind != "format"):
        least = [(number, gene, _least(by_name[gene.name], limit)) for number, gene in genes]
        true_of.setdefault("; ".join(_runs(least, by_name)), []).append(_words(part))
        found |= {gene.name: k for _, gene, k in least}
    taken = [by_name[gene.name]["divergence"][found[gene.name]] for gene in space if _counts(gene, found)]
    lines.append(
        "Tolerated alone is not tolerated together: the divergences of all of it add up to"
        f" {sum(filter(None, taken)):.3f} nats."
    )
    return lines + [f"{', '.join(words)}: {said}." for said, words in true_of.items()]


def _counts(gene: Gene, found: Mapping[str, int]) -> bool:
    """Say whether a gene has a choice that was found, and no block that can be dropped makes it void."""
    return gene.name in found and (gene.needs is None or found.get(gene.needs, 1) > 0)


def _place(name: str) -> tuple[int | None, str]:
    """Return the number of a gene's layer and the rest of its name; no number if it has none or several."""
    parts = name.split(".")
    numbered = [k for k, part in enumerate(parts) if part.isdecimal()]
    if len(numbered) != 1:
        return None, name
    return int(parts[numbered[0]]), ".".join(parts[numbered[0] + 1 :])


def _words(part: str) -> str:
    words = part.replace("_format", "").removesuffix(".format").removesuffix(".active")
    return words.replace(".", " ")


def _least(entry: Mapping[str, Any], limit: float) -> int:
    """Return the index of the cheapest choice that is tolerated with all dearer ones."""
    least = len(entry["choices"]) - 1
    for k in range(least, -1, -1):
        rise, error = entry["rise"][k], entry["standard_error"][k]
        if rise is None or rise >= max(limit, ERRORS * error):
            break
        least = k
    return least


def _runs(least: Sequence[tuple[int | None, Gene, int]], by_name: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each run of neighboring layers that tolerate the same choice."""
    runs: list[list[tuple[int | None, Gene, int]]] = []
    for item in least:
        number, gene, k = item
        last = runs[-1][-1] if runs else None
        same = last is not None and last[1].choices == gene.choices and last[2] == k
        if same and last is not None and last[0] is not None and number == last[0] + 1:
            runs[-1].append(item)
        else:
            runs.append([item])
    return [_phrase(run, len(runs) == 1, by_name) for run in runs]


def _phrase(run: Sequence[tuple[int | None, Gene, int]], alone: bool, by_name: Mapping[str, Any]) -> str:
    (first, gene, k), last = run[0], run[-1][0]
    plural = len(run) > 1
    where = f"layers {first}{RANGE}{last}" if plural else f"layer {first}"
    if first is None or (alone and plural):
        where = "all layers" if first is not None else ""
    if gene.kind == "switch":
        verb = "can be dropped" if k == 0 else _needed(run, by_name)
    elif k == 0:
        verb = f"tolerate{'' if plural else 's'} {gene.choices[0]}, the cheapest there is"
    else:
        verb = (
            f"need{'' if plural else 's'} {gene.choices[k]}, {gene.choices[k - 1]} costs {_cost(run, k - 1, by_name)}"
        )
    return f"{where} {verb}".strip()


def _needed(run: Sequence[tuple[int | None, Gene, int]], by_name: Mapping[str, Any]) -> str:
    return f"must stay, dropping {'one' if len(run) > 1 else 'it'} costs {_cost(run, 0, by_name)}"


def _cost(run: Sequence[tuple[int | None, Gene, int]], k: int, by_name: Mapping[str, Any]) -> str:
    """Return what a choice costs over a run of genes, least to most."""
    rises = [by_name[gene.name]["rise"][k] for _, gene, _ in run]
    if None in rises:
        return "an unknown amount"
    low, high = f"{min(rises):.3f}", f"{max(rises):.3f}"
    return f"{low} nats" if low == high else f"{low}{RANGE}{high} nats"
