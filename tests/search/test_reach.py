from types import SimpleNamespace

import pytest

from search.reach import check_costs
from supernet.errors import UserError


def test_a_budget_that_no_subnet_meets_is_refused_before_the_search(tiny_supernet):
    space = tiny_supernet.space

    def known(genome):  # the last choice of each gene is the quickest, and takes the most bytes
        quick = sum(len(gene.choices) - 1 - i for gene, i in zip(space, genome, strict=True))
        return {"size_mb": 9.0, "decode_ms@a": 0.5 + quick, "decode_ms@b": 2.5 + quick}

    def scorer(**bounds):
        on = {t: {"size_mb" if n == "size_mb" else f"{n}@{t}": b for n, b in bounds.items()} for t in "ab"}
        names = ["size_mb", "decode_ms@a", "decode_ms@b"]
        return SimpleNamespace(targets=on, bounds=on.get, known_names=names, budget=bounds)

    strategy = SimpleNamespace(space=space, known=known)
    check_costs(scorer(), strategy)
    check_costs(scorer(decode_ms=0.5), strategy)  # on `a`, which is enough
    check_costs(scorer(size_mb=1.0, loss=0.0), strategy)  # the size is checked before, the loss must be evaluated
    with pytest.raises(
        UserError, match=r"budget.decode_ms=0.4 cannot .* a is decode_ms@a=0.5; .* b is decode_ms@b=2.5"
    ):
        check_costs(scorer(decode_ms=0.4, loss=1.0), strategy)
