import pytest
import torch
from torch.nn import functional as F

from supernet.ordering import order_by_importance


@pytest.fixture
def supernet(supernet_of):
    return supernet_of(kv_heads=(1, 2), heads_per_kv=(1, 3), width=(32, 64))


@pytest.fixture
def tokens(supernet):
    return torch.randint(supernet.vocab_size, (40, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", [{}, {"tied": False, "output_formats": ("F16",)}], ids=["tied", "untied"])
def test_the_largest_net_computes_the_same(supernet_of, tokens, changes):
    supernet = supernet_of(kv_heads=(1, 2), heads_per_kv=(1, 3), width=(32, 64), **changes)
    whole = supernet.space.full_precision(supernet.space.largest)
    before = supernet(tokens, whole)
    found = order_by_importance(supernet, tokens)
    assert list(found) == ["d_model", *(prefix[:-1] for prefix, _ in supernet.blocks())]
    assert any(places != sorted(places) for places in found.values()) and found["d_model"] != list(range(64))
    assert all(sorted(places) == list(range(len(places))) for places in found.values())
    assert (supernet(tokens, whole) - before).norm() <= 1e-5 * before.norm()


def test_a_stream_that_is_never_cut_stays_as_it_is(supernet_of, tokens):
    supernet, before = supernet_of(d_model=(64,)), supernet_of(d_model=(64,))
    assert "d_model" not in order_by_importance(supernet, tokens)
    assert torch.equal(supernet.embedding.weight, before.embedding.weight)
    for (_, block), (_, former) in zip(supernet.blocks(), before.blocks(), strict=True):
        assert torch.equal(block.norm.weight, former.norm.weight)


def test_ordering_twice_changes_nothing(supernet, tokens):
    order_by_importance(supernet, tokens)
    before = [parameter.clone() for parameter in supernet.parameters()]
    again = order_by_importance(supernet, tokens)
    assert all(places == sorted(places) for places in again.values())
    assert all(torch.equal(a, b) for a, b in zip(supernet.parameters(), before, strict=True))


def first_parts(supernet, gene):
    """Return the weights behind what the cheapest choice of a gene keeps: its first parts add by these."""
    if gene == "d_model":
        writers = [writer for _, block in supernet.blocks() for writer in block.stream().writers]
        return [supernet.embedding.weight[:, :32], *(writer.weight[:32] for writer in writers)]
    if gene == "mlp.width":
        return [layer["mlp"].down_proj.weight[:, :32] for layer in supernet.layers]
    outputs = [layer["attention"].o_proj.weight for layer in supernet.layers]
    return [o[:, :1] if gene == "attention.kv_heads" else o[:, :, :2] for o in outputs]


@torch.no_grad()
@pytest.mark.parametrize("gene", ["d_model", "mlp.width", "attention.kv_heads", "attention.heads_per_kv"])
def test_a_prefix_is_nearer_to_the_largest_net_than_before(supernet, tokens, gene):
    for part in first_parts(supernet, gene):
        part *= 0.02
    whole = supernet.space.full_precision(supernet.space.largest)
    cheapest = {g.name: g.choices[0] for g in supernet.space if g.name.endswith(gene)}

    def divergence():
        wanted = supernet(tokens, whole).log_softmax(-1)
        found = supernet(tokens, whole | cheapest).log_softmax(-1)
        return F.kl_div(found, wanted, reduction="batchmean", log_target=True).item()

    before = divergence()
    found = order_by_importance(supernet, tokens)
    if gene == "d_model":
        assert set(found["d_model"][:32]) == set(range(32, 64))
    assert divergence() < before / 2


def test_running_averages_move_along(supernet, tokens):
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-3)
    supernet(tokens, supernet.space.decode(supernet.space.largest)).square().mean().backward()
    optimizer.step()
    for parameter, averages in optimizer.state.items():
        averages["exp_avg"].copy_(parameter)
    order_by_importance(supernet, tokens, optimizer)
    assert all(torch.equal(averages["exp_avg"], parameter) for parameter, averages in optimizer.state.items())
    moved = supernet.embedding.weight
    for parameter, averages in optimizer.state.items():
        averages["exp_avg"] = torch.zeros_like(parameter, dtype=torch.uint8)  # codes, as of AdamW in eight bits
    order_by_importance(supernet, tokens, optimizer)
    assert moved not in optimizer.state


def test_learned_factors_begin_anew_since_their_groups_hold_other_weights(supernet_of, tokens):
    supernet = supernet_of(width=(32, 64), scales={"Q4_0": "learned"})
    factors = {name: p for name, p in supernet.named_parameters() if "log_factors" in name}
    begun = {name: p.detach().clone() for name, p in factors.items()}
    optimizer = torch.optim.AdamW(factors.values(), lr=0.1)
    sum(p.sum() for p in factors.values()).backward()
    optimizer.step()
    assert factors and not any(torch.equal(p, begun[name]) for name, p in factors.items())
    order_by_importance(supernet, tokens, optimizer)
    assert all(torch.equal(p, begun[name]) for name, p in factors.items()) and not optimizer.state
