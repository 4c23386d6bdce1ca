from types import SimpleNamespace

import numpy as np
import pytest

from supernet.budgets import cheapest_genome, rounded_up
from supernet.errors import UserError
from supernet.fitting import Batches

LOW = ("Q2_K", "Q4_0")


def test_a_wider_row_may_cost_less(supernet_of):
    formats = dict.fromkeys(("embedding_formats", "qkv_formats", "gate_up_formats", "down_formats"), LOW)
    formats |= {"o_formats": ("Q4_0",)}
    supernet = supernet_of(d_model=(384, 512), width=(192, 256), n_layers=1, droppable=False, **formats)
    space = supernet.space

    def cost(genome):
        return float(supernet.n_bytes(space.decode(genome)))

    found = cheapest_genome(space, cost, space.row_widths)
    assert space.decode(found)["d_model"] == 512  # whose rows fit Q2_K, 384 weights do not
    assert cost(found) < cost(space.cheapest)
    rng = np.random.default_rng(0)
    assert cost(found) <= min(cost(space.sample(rng)) for _ in range(300))


def test_where_all_rows_fit_the_cheapest_is_it(tiny_supernet):
    space = tiny_supernet.space

    def cost(genome):
        return float(tiny_supernet.n_bytes(space.decode(genome)))

    assert cheapest_genome(space, cost, space.row_widths) == space.cheapest


@pytest.mark.parametrize(
    ("value", "rounded"), [(1.9261, 1.93), (0.05431, 0.0544), (0.2, 0.2), (12.0, 12.0), (123.4, 124.0), (0.0, 0.0)]
)
def test_a_cost_that_is_rounded_can_be_reached(value, rounded):
    assert rounded_up(value) == rounded >= value


def test_a_training_does_not_go_on_with_other_text():
    data = SimpleNamespace(hash="after", tokenizer_sha256="ours", directory="cache/after")
    batches = Batches(data, 3, lambda step: "train", 0, 2, 8)
    with pytest.raises(UserError, match=r"the corpus has changed .*was before, now it is after.*fresh=true"):
        batches.load_state_dict({"step": 2, "corpus": "before"})
    with pytest.raises(UserError, match=r"cache/after was built anew, and its tokenizer .*fresh=true"):
        batches.load_state_dict({"step": 2, "corpus": "after", "tokenizer": "theirs"})
    assert batches.first == 0
    batches.load_state_dict({**batches.state_dict(), "step": 2})
    assert batches.first == 2
    batches.load_state_dict({"step": 1})  # of before either was kept
    assert batches.first == 1
