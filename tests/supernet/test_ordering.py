import pytest
import torch

from supernet.blocks.attention import ElasticAttention
from supernet.blocks.swiglu import ElasticSwiGLU
from supernet.elastic import under
from supernet.ordering import order_by_importance


@pytest.fixture
def supernet(supernet_of):
    return supernet_of(kv_heads=(1, 2), heads_per_kv=(1, 3), width=(32, 64))


@pytest.fixture
def tokens(supernet):
    return torch.randint(supernet.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))


def test_the_largest_net_computes_the_same(supernet, tokens):
    whole = supernet.space.full_precision(supernet.space.largest)
    before = supernet(tokens, whole)
    found = order_by_importance(supernet, tokens)
    assert any(places != sorted(places) for places in found.values())
    assert all(sorted(places) == list(range(len(places))) for places in found.values())
    torch.testing.assert_close(supernet(tokens, whole), before, rtol=1e-4, atol=1e-4)


def test_ordering_twice_changes_nothing(supernet, tokens):
    order_by_importance(supernet, tokens)
    before = [parameter.clone() for parameter in supernet.parameters()]
    again = order_by_importance(supernet, tokens)
    assert all(places == sorted(places) for places in again.values())
    assert all(torch.equal(a, b) for a, b in zip(supernet.parameters(), before, strict=True))


def test_what_is_cut_adds_least(supernet, tokens):
    """Halves of a block: the first one adds more to the residual stream than the second one did before."""
    order_by_importance(supernet, tokens)
    whole = supernet.space.full_precision(supernet.space.largest)
    rope = supernet.rope.table(tokens.shape[1], None)
    x = supernet.embedding.weight[tokens]
    for prefix, block in supernet.blocks():
        local = under(whole, prefix)
        if isinstance(block, ElasticSwiGLU):
            first = block(x, {**local, "width": 32}, x.shape[-1], rope)
        else:
            assert isinstance(block, ElasticAttention)
            first = block(x, {**local, "kv_heads": 1}, x.shape[-1], rope)
        update = block(x, local, x.shape[-1], rope)
        assert first.norm() > (update - first).norm()
        x = x + update


def test_running_averages_move_along(supernet, tokens):
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-3)
    supernet(tokens, supernet.space.decode(supernet.space.largest)).square().mean().backward()
    optimizer.step()
    for parameter, averages in optimizer.state.items():
        averages["exp_avg"].copy_(parameter)
    order_by_importance(supernet, tokens, optimizer)
    assert all(torch.equal(averages["exp_avg"], parameter) for parameter, averages in optimizer.state.items())
