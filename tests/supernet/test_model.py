"""What is trained is what is extracted: one set of weights, every way to read it."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from supernet.elastic import ElasticLinear, ElasticRMSNorm, extent
from supernet.errors import UserError
from supernet.gates import Gates
from supernet.inventory import mean, shares
from supernet.losses import next_token_loss
from supernet.model import Supernet
from supernet.subnet import extract

SWITCHES = {
    "all dropped": dict.fromkeys(range(3), (0, 0)),
    "first without attention": {0: (0, 1)},
    "first without FFN": {0: (1, 0)},
    "last without attention": {2: (0, 1)},
    "last without FFN": {2: (1, 0)},
    "first dropped, then no attention": {0: (0, 0), 1: (0, 1)},
    "last dropped": {2: (0, 0)},
    "only the middle": {0: (0, 0), 2: (0, 0)},
}


def genomes(space):
    """Ends, random draws of both kinds, and blocks dropped at either end."""
    rng = np.random.default_rng(3)
    drawn = [("largest", space.largest), ("smallest", space.smallest), ("cheapest", space.cheapest)]
    drawn += [(f"sample {i}", space.sample(rng)) for i in range(10)]
    drawn += [(f"spread {i}", space.sample_spread(rng)) for i in range(10)]
    for name, layers in SWITCHES.items():
        architecture = space.decode(space.largest) | {"d_model": 32}
        for layer, (attention, mlp) in layers.items():
            architecture[f"layers.{layer}.attention.active"] = attention
            architecture[f"layers.{layer}.mlp.active"] = mlp
        drawn.append((name, space.encode(architecture)))
    return drawn


def one_hot(space, genome):
    """Return the soft choices that put everything on a genome's."""
    return {
        gene.name: torch.eye(len(gene.choices))[index]
        for gene, index in zip(space, genome, strict=True)
    }  # fmt: skip


def relative_error(got, wanted):
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
def test_subnets_compute_what_the_supernet_computes(tiny_supernet, tokens):
    for name, genome in genomes(tiny_supernet.space):
        wanted = tiny_supernet(tokens, tiny_supernet.space.decode(genome))
        got = extract(tiny_supernet, genome)(tokens)
        assert relative_error(got, wanted) <= 1e-5, name


@torch.no_grad()
def test_a_certain_soft_choice_is_the_hard_choice(tiny_supernet, tokens):
    space = tiny_supernet.space
    for name, genome in genomes(space):
        hard, soft = space.decode(genome), one_hot(space, genome)
        assert relative_error(tiny_supernet(tokens, soft), tiny_supernet(tokens, hard)) <= 1e-5, name
        assert float(tiny_supernet.n_bytes(soft)) == pytest.approx(tiny_supernet.n_bytes(hard), rel=1e-6), name


def test_hard_and_soft_choices_mix(tiny_supernet, tokens):
    space = tiny_supernet.space
    genome = space.smallest
    hard, soft = space.decode(genome), one_hot(space, genome)
    wanted = tiny_supernet(tokens, hard)
    for kind in ("width", "switch", "format"):
        mixed = {gene.name: (soft if gene.kind == kind else hard)[gene.name] for gene in space}
        assert relative_error(tiny_supernet(tokens, mixed), wanted) <= 1e-5


def test_formats_can_be_frozen(tiny_supernet, tokens):
    genome = tiny_supernet.space.sample(np.random.default_rng(0))
    rounded, frozen = extract(tiny_supernet, genome), extract(tiny_supernet, genome).freeze_formats()
    assert torch.equal(frozen(tokens), rounded(tokens))
    assert {linear.format.name for linear in frozen.linears()} == {"F32"}
    assert any(linear.format.name != "F32" for linear in rounded.linears())


def test_a_subnet_owns_its_weights(supernet_of, tokens):
    supernet = supernet_of()
    before = supernet(tokens, supernet.space.decode(supernet.space.largest))
    subnet = extract(supernet, supernet.space.largest)
    with torch.no_grad():
        for parameter in subnet.parameters():
            parameter.zero_()
    assert torch.equal(supernet(tokens, supernet.space.decode(supernet.space.largest)), before)


def test_extraction_checks_the_genome(tiny_supernet):
    with pytest.raises(UserError, match="not a genome"):
        extract(tiny_supernet, tiny_supernet.space.largest[:-1])


def test_shapes_and_formats_of_a_subnet(tiny_supernet):
    space = tiny_supernet.space
    architecture = space.decode(space.largest) | {
        "d_model": 32,
        "embedding.format": "Q8_0",
        "layers.0.attention.kv_heads": 1,
        "layers.1.attention.heads_per_kv": 1,
        "layers.1.mlp.width": 64,
        "layers.2.attention.active": 0,
        "layers.2.mlp.active": 0,
    }
    subnet = extract(tiny_supernet, space.encode(architecture))
    first, second, third = subnet.layers
    assert (subnet.d_model, subnet.embedding.format.name) == (32, "Q8_0")
    assert (first.attention.heads, first.attention.kv_heads) == (2, 1)
    assert (second.attention.heads, second.attention.kv_heads) == (2, 2)
    assert (first.mlp.width, second.mlp.width) == (96, 64)
    assert third.attention is None and third.mlp is None


def test_query_heads_stay_on_their_key_value_head(tiny_supernet):
    """With 2 x 2 heads a prefix of one query head each keeps heads 0 and 2."""
    space = tiny_supernet.space
    name = "layers.0.attention.heads_per_kv"
    narrow = extract(tiny_supernet, space.encode(space.decode(space.largest) | {name: 1}))
    wide = extract(tiny_supernet, space.largest)
    kept = narrow.layers[0].attention.q_proj.weight.unflatten(0, (2, 32))
    assert torch.equal(kept, wide.layers[0].attention.q_proj.weight.unflatten(0, (4, 32))[[0, 2]])


def test_tokens_to_come_are_not_seen(tiny_supernet, tokens):
    architecture = tiny_supernet.space.decode(tiny_supernet.space.largest)
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 50
    before, after = tiny_supernet(tokens, architecture), tiny_supernet(changed, architecture)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_weights_repeat_with_the_seed(supernet_of):
    one, same, other = supernet_of(seed=1), supernet_of(seed=1), supernet_of(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_genes_of_the_model(tiny_supernet):
    names = [gene.name for gene in tiny_supernet.space]
    assert names[:2] == ["d_model", "embedding.format"]
    assert len(names) == 2 + 3 * (5 + 4)
    by_name = {gene.name: gene for gene in tiny_supernet.space}
    assert by_name["layers.2.mlp.width"].choices == (32, 64, 96)
    assert by_name["layers.2.mlp.width"].needs == "layers.2.mlp.active"


def test_blocks_are_attention_and_mlp():
    with pytest.raises(UserError, match=r"model\.blocks must hold attention and mlp"):
        Supernet(50, 64, 1, [32], 32, 1e4, 1e-5, ["F16"], {})


def test_a_blocks_formats_and_masks():
    linear = ElasticLinear((4, 2), (64,), ("Q4_0", "F16"))
    assert linear.effective((3, 2), (32,), "Q4_0").weight.shape == (6, 32)
    mask = extent(torch.tensor([0.25, 0.75]), (1, 4))
    assert torch.allclose(mask, torch.tensor([1, 0.75, 0.75, 0.75]))
    soft = linear.effective((mask, 2), (64,), "F16").weight
    torch.testing.assert_close(soft, linear.effective((4, 2), (64,), "F16").weight * mask.repeat_interleave(2)[:, None])
    mixed = linear.effective((4, 2), (64,), torch.tensor([0.3, 0.7])).weight
    q4, f16 = (linear.effective((4, 2), (64,), name).weight for name in ("Q4_0", "F16"))
    torch.testing.assert_close(mixed, 0.3 * q4 + 0.7 * f16)


def test_a_soft_norm_is_the_hard_norm_where_it_is_certain():
    norm = ElasticRMSNorm(64, 1e-5)
    torch.nn.init.uniform_(norm.weight)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    mask = extent(torch.tensor([1.0, 0.0]), (32, 64))
    soft = norm(x * mask, mask)
    torch.testing.assert_close(soft[:, :32], norm(x[:, :32], 32))
    torch.testing.assert_close(norm.extract(32)(x[:, :32]), norm(x[:, :32], 32))
    assert not soft[:, 32:].any()


def test_the_mean_of_a_hard_width_is_itself():
    assert mean(shares(64, (32, 64))) == 64
    assert mean(shares(torch.tensor([0.25, 0.75]), (32, 64))).item() == 56


# Bytes.


def small_space_supernet(supernet_of):
    names = ("embedding_formats", "o_formats", "gate_up_formats", "down_formats")
    changes = dict.fromkeys(names, ("Q8_0",)) | {"qkv_formats": ("Q4_0", "Q8_0"), "heads_per_kv": (2,)}
    return supernet_of(n_layers=2, width=(32, 64), **changes)


def test_an_expected_inventory_is_the_mean_over_all_subnets(supernet_of):
    supernet = small_space_supernet(supernet_of)
    rng = np.random.default_rng(0)
    probabilities = [rng.dirichlet(np.ones(len(gene.choices))) for gene in supernet.space]
    mean, mean_bytes = Counter(), 0.0
    for genome in itertools.product(*(range(len(gene.choices)) for gene in supernet.space)):
        p = math.prod(row[i] for row, i in zip(probabilities, genome, strict=True))
        architecture = supernet.space.decode(genome)
        for name, count in supernet.inventory(architecture).items():
            mean[name] += p * count
        mean_bytes += p * supernet.n_bytes(architecture)
    soft = {gene.name: torch.tensor(p) for gene, p in zip(supernet.space, probabilities, strict=True)}
    assert supernet.n_bytes(soft).item() == pytest.approx(mean_bytes, rel=1e-10)
    assert {name: float(count) for name, count in supernet.inventory(soft).items()} == pytest.approx(mean, rel=1e-10)
    assert {"intermediate", "kv_values", "Q8_0.rows", "once.Q8_0.weights"} <= set(mean)


def test_the_largest_intermediate_leaves_out_the_last_ffn(tiny_supernet):
    space = tiny_supernet.space
    base = space.decode(space.largest)

    def intermediate(**changes):
        return tiny_supernet.inventory(base | {f"layers.{k}": v for k, v in changes.items()})["intermediate"]

    attention, narrow = 2 * (4 + 2) * 32, 2 * (2 + 1) * 32
    assert intermediate() == attention > 3 * 96
    heads = {f"{i}.attention.kv_heads": 1 for i in range(3)}
    assert intermediate(**heads) == 3 * 96 > narrow
    assert intermediate(**heads, **{"0.mlp.width": 32, "1.mlp.width": 64}) == narrow
    off = {"2.attention.active": 0, "2.mlp.active": 0, "0.mlp.active": 0}
    assert intermediate(**heads, **off) == narrow  # the FFN of the middle layer has become the last
    assert tiny_supernet.inventory(space.decode(space.cheapest))["intermediate"] == 0


def test_bytes_are_those_of_the_tensors(tiny_supernet):
    """Nothing dropped: every projection in its format, every gain in F32."""
    rng = np.random.default_rng(1)
    space = tiny_supernet.space
    for _ in range(10):
        on = {gene.name: 1 for gene in space if gene.kind == "switch"}
        genome = space.encode(space.decode(space.sample(rng)) | on)
        subnet = extract(tiny_supernet, genome)
        n_bytes = sum(linear.format.n_bytes(linear.weight.numel()) for linear in subnet.linears())
        n_bytes += sum(4 * p.numel() for name, p in subnet.named_parameters() if "norm" in name)
        assert tiny_supernet.n_bytes(space.decode(genome)) == n_bytes
        weights = Counter()
        for linear in subnet.linears():
            weights[f"{linear.format.name}.weights"] += linear.weight.numel()
            weights[f"{linear.format.name}.rows"] += len(linear.weight)
        inventory = tiny_supernet.inventory(space.decode(genome))
        assert {name: inventory[name] for name in weights} == weights
        assert inventory["heads"] == sum(layer.attention.heads for layer in subnet.layers)
        assert inventory["attention"] == inventory["mlp"] == 3


def test_stand_ins_of_dropped_blocks(tiny_supernet):
    """A runtime wants an FFN in every kept layer, and attention in the first of them."""
    space = tiny_supernet.space
    base = space.decode(space.cheapest) | {"d_model": 32, "embedding.format": "F16"}

    def n_bytes(*active):
        kept = {f"layers.{i}.{name}.active": int(name in active[i]) for i in range(3) for name in ("attention", "mlp")}
        return tiny_supernet.n_bytes(base | kept) - (50 * 32 * 2 + 4 * 32)

    attention_stand_in = 4 * 32 + 4 * 32 * 32 * 4.5 / 8
    ffn_stand_in = 4 * 32 + 3 * 32 * 32 * 4.5 / 8
    attention = 4 * 32 + 32 * 32 * 4 * 4.5 / 8
    ffn = 4 * 32 + 32 * 32 * (2 * 4.5 + 5.5) / 8
    nothing, a, f, both = (), ("attention",), ("mlp",), ("attention", "mlp")
    assert n_bytes(nothing, nothing, nothing) == attention_stand_in + ffn_stand_in
    assert n_bytes(a, nothing, nothing) == attention + ffn_stand_in
    assert n_bytes(nothing, f, nothing) == attention_stand_in + ffn
    assert n_bytes(nothing, f, f) == attention_stand_in + 2 * ffn
    assert n_bytes(a, f, nothing) == attention + ffn_stand_in + ffn
    assert n_bytes(both, nothing, both) == 2 * (attention + ffn)


# Gradients.


@pytest.mark.parametrize("hard", [False, True])
def test_gradients_reach_every_gate(tiny_supernet, tokens, hard):
    space = tiny_supernet.space
    gates = Gates(space, 1, 1.0)
    choices = gates.sample(0, 2.0, hard, torch.Generator().manual_seed(0))
    if hard:  # the gradient of what a dropped block hides is 0
        choices |= {gene.name: 1 for gene in space if gene.kind == "switch"}
    next_token_loss(tiny_supernet(tokens, choices), tokens).backward()
    gradient = gates.logits[0].grad
    assert gradient.isfinite().all()
    for gene, row in zip(space, gradient, strict=True):
        if isinstance(choices[gene.name], torch.Tensor):
            assert row[: len(gene.choices)].abs().sum() > 0, gene.name
        assert not row[len(gene.choices) :].any()
    for parameter in tiny_supernet.parameters():
        parameter.grad = None


def test_bytes_have_a_gradient(tiny_supernet):
    gates = Gates(tiny_supernet.space, 1, 1.0)
    tiny_supernet.n_bytes(gates.expected(0)).backward()
    for gene, row in zip(tiny_supernet.space, gates.logits[0].grad, strict=True):
        assert row[0] < 0 < row[len(gene.choices) - 1], gene.name  # a cheaper choice lowers the bytes


def test_a_subnets_gradient_stays_in_its_prefix(supernet_of, tokens):
    supernet = supernet_of()
    architecture = supernet.space.decode(supernet.space.smallest)
    next_token_loss(supernet(tokens, architecture), tokens).backward()
    up = supernet.layers[0]["mlp"].up_proj.weight.grad
    assert up[:32, :32].any() and not up[32:].any() and not up[:, 32:].any()
    q = supernet.layers[0]["attention"].q_proj.weight.grad
    assert q[:1, :1, :, :32].any() and not q[1:].any() and not q[:, 1:].any() and not q[..., 32:].any()
