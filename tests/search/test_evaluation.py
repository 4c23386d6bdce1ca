"""A candidate's cheap evaluation gives the very numbers that its shipped weights give, whatever was reused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from search.evaluation import RECENT, Evaluator, spread_order
from search.frozen import FrozenElasticLinear, Network, frozen
from search.reuse import ReuseCache
from supernet.losses import evaluate, mean_scores, token_scores
from supernet.subnet import extract

CPU = torch.device("cpu")
STREAM = 5 * 16 * 64 * 4  # bytes of the residual stream of all rows in the wider net


@pytest.fixture(scope="module")
def rows():
    return torch.randint(50, (5, 17), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def genomes(tiny_supernet):
    space, rng = tiny_supernet.space, np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(8)] + [space.sample_spread(rng) for _ in range(8)]
    return [space.largest, space.smallest, space.cheapest, *drawn]


def naive(supernet, genome, evaluator):
    """Score a genome as its shipped weights would be, in the evaluator's batches."""
    shipped = extract(supernet, genome).freeze_formats()
    losses = torch.empty(evaluator.rows[:, 1:].shape)
    hits = torch.empty(losses.shape, dtype=torch.bool)
    with torch.no_grad():
        for batch in evaluator.batches:
            tokens = evaluator.rows[batch]
            losses[batch], hits[batch] = token_scores(shipped(tokens[:, :-1]), tokens[:, 1:])
    return losses, hits


def family(space, rng, n):
    """Return genomes that share beginnings: each differs from an earlier one in few genes."""
    found = [space.sample(rng)]
    while len(found) < n:
        indices = list(found[rng.integers(len(found))])
        for i in rng.choice(len(space), size=rng.integers(1, 4), replace=False):
            indices[i] = int(rng.integers(len(space.genes[i].choices)))
        found.append(space.canonical(indices))
    return found


def test_frozen_weights_give_exactly_the_shipped_logits(tiny_supernet, genomes, rows):
    rounded_once = frozen(tiny_supernet, CPU)
    with torch.inference_mode():
        for genome in genomes:
            wanted = extract(tiny_supernet, genome).freeze_formats()(rows)
            assert torch.equal(extract(rounded_once, genome)(rows), wanted)


def test_the_score_is_exactly_the_shipped_loss(tiny_supernet, genomes, rows):
    evaluator = Evaluator(tiny_supernet, rows, 2, reuse_mb=1)
    for genome in genomes:
        shipped = extract(tiny_supernet, genome).freeze_formats()
        assert evaluator.evaluation(genome).quality == evaluate(shipped, rows, 2)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    limit=st.sampled_from([0, 1, STREAM // 3, STREAM, 100 * STREAM]),
    batch_size=st.integers(1, 6),
    hurdles=st.sampled_from([(), (1,), (2, 3)]),
)
def test_reuse_changes_no_bit(tiny_supernet, rows, seed, limit, batch_size, hurdles):
    rng = np.random.default_rng(seed)
    evaluator = Evaluator(tiny_supernet, rows, batch_size, reuse_mb=limit / 1e6, hurdles=hurdles)
    alone = Evaluator(tiny_supernet, rows, batch_size, hurdles=hurdles)
    for genome in family(tiny_supernet.space, rng, 8):
        for level in range(len(hurdles)):
            assert evaluator.divergence(genome, level) == alone.divergence(genome, level)
        losses, hits = naive(tiny_supernet, genome, evaluator)
        evaluation = evaluator.evaluation(genome)
        assert torch.equal(evaluation.losses, losses)
        assert evaluation.quality == mean_scores(losses, hits)
        assert evaluator.cache.n_bytes <= limit
    assert evaluator.cache.peak_bytes <= limit


def test_nets_that_differ_in_the_output_projection_alone_share_every_block(supernet_of, rows, monkeypatch):
    net = supernet_of(tied=False, output_formats=("Q4_0", "F16"))
    evaluator, blocks = Evaluator(net, rows, 2, reuse_mb=1, hurdles=(1,)), []
    extracted = Network.block
    monkeypatch.setattr(Network, "block", lambda self, number: blocks.append(number) or extracted(self, number))
    for genome in (
        net.space.largest,
        net.space.encode({**net.space.decode(net.space.largest), "output.format": "Q4_0"}),
    ):
        losses, hits = naive(net, genome, evaluator)
        assert torch.equal(evaluator.evaluation(genome).losses, losses)
        assert evaluator.evaluation(genome).quality == mean_scores(losses, hits)
    assert blocks == 4 * [0, 1, 2, 3, 4, 5]  # of each batch, once
    for genome in family(net.space, np.random.default_rng(1), 12):
        losses, _ = naive(net, genome, evaluator)
        assert torch.equal(evaluator.evaluation(genome).losses, losses)
        assert evaluator.divergence(genome, 0) >= 0


def test_relatives_are_spared_work(tiny_supernet, rows):
    genomes = family(tiny_supernet.space, np.random.default_rng(0), 20)
    hits = []
    for limit in (0, STREAM, 100 * STREAM):
        evaluator = Evaluator(tiny_supernet, rows, 5, reuse_mb=limit / 1e6)
        assert all(evaluator.evaluation(genome).quality for genome in genomes)
        hits.append(evaluator.cache.hits)
    assert hits[0] == 0 < hits[1] < hits[2]


def test_what_is_shared_is_not_computed_again(tiny_supernet, rows, monkeypatch):
    evaluator = Evaluator(tiny_supernet, rows, 5, reuse_mb=1)
    blocks = []
    extracted = Network.block
    monkeypatch.setattr(Network, "block", lambda self, number: blocks.append(number) or extracted(self, number))
    space = tiny_supernet.space
    down = space.position["layers.1.mlp.down_format"]
    child = tuple(index - (i == down) for i, index in enumerate(space.largest))
    assert evaluator.evaluation(space.largest).quality and blocks == [0, 1, 2, 3, 4, 5]
    assert evaluator.evaluation(child).quality and blocks[6:] == [3, 4, 5]
    dropped = space.replace(child, lambda gene, index: 0 if gene.name == "layers.2.attention.active" else index)
    assert evaluator.evaluation(dropped).quality and blocks[9:] == [4]
    n_streams, n_blocks = len(evaluator.cache), len(blocks)
    assert evaluator.evaluation(dropped).quality and len(blocks) == n_blocks  # token scores are kept
    assert n_streams == 5 + 2 and evaluator.cache.n_bytes == n_streams * STREAM


def test_narrow_nets_have_streams_of_their_own(tiny_supernet, rows):
    evaluator = Evaluator(tiny_supernet, rows, 5, reuse_mb=1)
    space = tiny_supernet.space
    narrow = space.replace(space.largest, lambda gene, index: 0 if gene.name == "d_model" else index)
    assert evaluator.evaluation(space.largest).quality != evaluator.evaluation(narrow).quality
    assert evaluator.cache.hits == 0 and evaluator.cache.n_bytes == 5 * (STREAM + STREAM // 2)


def test_token_scores_of_long_ago_are_dropped(tiny_supernet, rows):
    evaluator = Evaluator(tiny_supernet, rows, 5)
    rng = np.random.default_rng(0)
    for _ in range(RECENT + 5):
        assert evaluator.evaluation(tiny_supernet.space.sample(rng)).quality
    assert len(evaluator._recent) == RECENT


def tensors(*names):
    return [torch.full((256,), float(ord(name))) for name in names]


def test_the_longest_path_that_is_held_is_found():
    cache = ReuseCache(10 * 1024)
    assert cache.longest(["a", "ab", "abc"]) == (0, None)
    cache.add(["a", "ab", "abc"], tensors(*"abc"))
    n, tensor = cache.longest(["a", "ab", "abd"])
    assert n == 2 and tensor[0] == ord("b")
    assert (cache.hits, cache.lookups, cache.n_bytes, len(cache)) == (2, 6, 3 * 1024, 3)


def test_the_least_recently_used_goes_and_what_proved_useful_stays():
    cache = ReuseCache(4 * 1024)
    for name in "abcd":
        cache.add([name], tensors(name))
    assert cache.longest(["a"])[0] == 1 and cache.longest(["b"])[0] == 1
    for name in "efgh":
        cache.add([name], tensors(name))
        assert cache.n_bytes == 4 * 1024
    assert [cache.longest([name])[0] for name in "abcdefgh"] == [1, 1, 0, 0, 0, 0, 1, 1]


def test_what_was_dropped_too_early_is_kept_the_second_time():
    cache = ReuseCache(2 * 1024)
    for name in "abcadefg":
        cache.add([name], tensors(name))
    assert cache.longest(["a"])[0] == 1


def test_places_are_used_again():
    cache = ReuseCache(4 * 1024)
    cache.add(list("abcd"), tensors(*"abcd"))
    places = {tensor.data_ptr() for tensor in cache._trial.values()}
    cache.add(list("efg"), tensors(*"efg"))
    assert {tensor.data_ptr() for tensor in cache._trial.values()} == places and len(cache) == 4
    cache.add(["wide"], [torch.zeros(2, 256)])
    assert cache.n_bytes <= cache.limit and cache.longest(["wide"])[1].shape == (2, 256)
    cache.add(["whole"], [torch.zeros(4, 256)])
    assert cache.n_bytes == cache.limit and len(cache) == 1


def test_what_never_fits_is_not_kept():
    cache = ReuseCache(1023)
    cache.add(["a"], tensors("a"))
    assert len(cache) == cache.peak_bytes == 0


def test_scores_repeat_in_any_order(tiny_supernet, genomes, rows):
    first, second = (Evaluator(tiny_supernet, rows, 2, reuse_mb=1) for _ in range(2))
    forward = [first.evaluation(genome).quality for genome in genomes[:6]]
    backward = [second.evaluation(genome).quality for genome in reversed(genomes[:6])]
    assert forward == backward[::-1]


def test_divergence_is_that_from_the_largest_on_the_same_rows(tiny_supernet, genomes, rows):
    evaluator = Evaluator(tiny_supernet, rows, 2, hurdles=(2, 3))
    largest = extract(tiny_supernet, tiny_supernet.space.largest).freeze_formats()
    for genome in genomes:
        shipped = extract(tiny_supernet, genome).freeze_formats()
        for level, chosen in enumerate(([0, 4], [0, 4, 2])):
            with torch.no_grad():
                teacher, student = (net(rows[chosen, :-1]).log_softmax(-1) for net in (largest, shipped))
            wanted = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean().item()
            assert evaluator.divergence(genome, level) == pytest.approx(wanted, abs=1e-3)
    assert 0 <= evaluator.divergence(tiny_supernet.space.largest, 1) < 1e-3


def test_a_hurdle_leaves_the_rest_to_the_next(tiny_supernet, rows):
    evaluator = Evaluator(tiny_supernet, rows, 2, hurdles=(1, 3))
    genome, batches = tiny_supernet.space.smallest, []
    logits = evaluator._logits
    evaluator._logits = lambda *args: batches.append(args[-1]) or logits(*args)
    assert evaluator._largest and batches == [0, 1, 2]
    for level in (0, 1, 0):
        assert evaluator.divergence(genome, level) > 0
    assert evaluator.evaluation(genome).quality and batches[3:] == [0, 1, 2, 3, 4]
    assert [len(b) for b in evaluator.batches] == [1, 1, 1, 1, 1]


def test_hurdles_of_a_short_split_take_what_there_is(tiny_supernet, rows):
    evaluator = Evaluator(tiny_supernet, rows, 2, hurdles=(2, 9))
    assert sum(len(batch) for batch in evaluator.batches) == len(rows)
    assert evaluator.divergence(tiny_supernet.space.smallest, 1) > 0


@pytest.mark.parametrize("n", [1, 2, 5, 8, 64, 100])
def test_any_first_rows_are_spread(n):
    order = spread_order(n)
    assert sorted(order) == list(range(n))
    for first in (2, 4, 8):
        if 2 * first <= n:
            assert max(np.diff(sorted(order[:first]))) <= 2 * n / first


def test_each_weight_is_rounded_once_per_format(tiny_supernet, rows, genomes):
    evaluator = Evaluator(tiny_supernet, rows, 2)
    for genome in genomes:
        assert evaluator.evaluation(genome).full_precision_loss > 0
        assert evaluator.evaluation(genome).quality
    embedding = evaluator.supernet.embedding
    before = {name: tensor.data_ptr() for name, tensor in embedding.rounded.items()}
    assert {name for name, _ in before} == {"Q4_0", "Q8_0", "F16"} and len(before) == 3
    assert evaluator.evaluation(tiny_supernet.space.smallest).quality
    assert {name: tensor.data_ptr() for name, tensor in embedding.rounded.items()} == before


def test_freezing_leaves_the_supernet_as_it_was(supernet_of, rows):
    supernet = supernet_of()
    architecture = supernet.space.decode(supernet.space.largest)
    before = supernet(rows, architecture)
    result = frozen(supernet, CPU)
    assert torch.equal(supernet(rows, architecture), before)
    assert all(parameter.requires_grad for parameter in supernet.parameters())
    assert not any(isinstance(module, FrozenElasticLinear) for module in supernet.modules())
    n_frozen = sum(isinstance(module, FrozenElasticLinear) for module in result.modules())
    assert n_frozen == 1 + 3 * (4 + 3)


def test_a_candidate_only_views_the_rounded_weights(tiny_supernet):
    rounded_once = frozen(tiny_supernet, CPU)
    with torch.inference_mode():
        subnet = extract(rounded_once, tiny_supernet.space.smallest)
    name = tiny_supernet.space.decode(tiny_supernet.space.smallest)["embedding.format"]
    shared = rounded_once.embedding.rounded[name, (64,)].untyped_storage().data_ptr()
    assert subnet.embedding.weight.untyped_storage().data_ptr() == shared


def test_formats_that_only_narrow_rows_fit(supernet_of):
    """A K-format is offered for 256 channels where the widest row has 320: rounded once, relaxed or extracted alike."""
    formats = ("Q3_K", "Q8_0")
    names = ("embedding_formats", "qkv_formats", "o_formats", "gate_up_formats", "down_formats")
    supernet = supernet_of(
        n_layers=1,
        d_model=(256, 320),
        width=(256, 320),
        head_dim=64,
        heads_per_kv=(2,),
        kv_heads=(2,),
        **dict.fromkeys(names, formats),
    )
    space, rounded_once = supernet.space, frozen(supernet, CPU)
    tokens = torch.randint(supernet.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    for genome in {space.with_format(end, name) for end in (space.largest, space.smallest) for name in formats}:
        architecture = space.decode(genome)
        wanted = extract(supernet, genome)(tokens)
        assert torch.equal(extract(rounded_once, genome)(tokens), wanted)
        torch.testing.assert_close(supernet(tokens, architecture), wanted)
        soft = {g.name: torch.eye(len(g.choices))[k] for g, k in zip(space, genome, strict=True)}
        torch.testing.assert_close(supernet(tokens, soft), wanted, rtol=1e-4, atol=1e-4)
        hard_bytes = float(supernet.n_bytes(architecture))
        assert float(supernet.n_bytes(soft)) == pytest.approx(hard_bytes, rel=1e-5)
