"""What Llamas have and our own nets do not: an output projection of its own, Llama 3's rotary positions."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch

from supernet.errors import UserError
from supernet.flops import forward_flops, subnet_flops
from supernet.hardware import features
from supernet.inventory import inventory_bytes
from supernet.rope import Llama3Scaling, Rope, check_scaling
from supernet.subnet import extract, extract_architecture

SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA = {"tied": False, "output_formats": ("Q4_0", "Q8_0", "F16"), "rope_scaling": SCALING}


@pytest.fixture(scope="module")
def llama(supernet_of):
    return supernet_of(**LLAMA)


def genomes(space, n=12):
    rng = np.random.default_rng(5)
    return [space.largest, space.smallest, space.cheapest, *(space.sample(rng) for _ in range(n))]


def sha(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def test_a_tied_net_is_what_it_was_before(tiny_supernet):
    """Its genes, counts and names are in files of finished runs: hashes of before there were untied nets."""
    largest = tiny_supernet.space.decode(tiny_supernet.space.largest)
    assert sha(tiny_supernet.space.to_json()) == "dd228b327a3fc724"
    assert sha(tiny_supernet.inventory(largest)) == "604597a60a697d97"
    assert len(tiny_supernet.state_dict()) == 29 and "output.weight" not in tiny_supernet.state_dict()


def test_an_untied_net_has_one_gene_more(tiny_supernet, llama):
    genes = llama.space.to_json()
    assert [gene for gene in genes if gene["name"] != "output.format"] == tiny_supernet.space.to_json()
    assert genes[2] | {"name": "embedding.format"} == genes[1]
    assert set(llama.state_dict()) - set(tiny_supernet.state_dict()) == {"output.weight"}


@torch.no_grad()
def test_subnets_compute_what_the_supernet_computes(llama, tokens):
    for genome in genomes(llama.space):
        hard = llama.space.decode(genome)
        soft = {g.name: torch.eye(len(g.choices))[i] for g, i in zip(llama.space, genome, strict=True)}
        wanted = llama(tokens, hard)
        error = (extract(llama, genome)(tokens) - wanted).abs().max() / wanted.abs().max()
        assert error <= 1e-5
        torch.testing.assert_close(llama(tokens, soft), wanted, rtol=1e-4, atol=1e-4)
        assert float(llama.n_bytes(soft)) == pytest.approx(llama.n_bytes(hard), rel=1e-6)


def test_output_and_embedding_have_formats_of_their_own(llama):
    largest = llama.space.decode(llama.space.largest)
    decoder = extract(llama, llama.space.encode({**largest, "embedding.format": "Q4_0"}))
    assert (decoder.embedding.format.name, decoder.output.format.name) == ("Q4_0", "F16")
    assert decoder.output in list(decoder.linears())
    assert {linear.format.name for linear in decoder.freeze_formats().linears()} == {"F32"}


def test_full_precision_is_no_choice_but_can_be_extracted(llama):
    decoder = extract_architecture(llama, llama.space.full_precision(llama.space.largest))
    assert {linear.format.name for linear in decoder.linears()} == {"F32"}
    assert torch.equal(decoder.output.weight, llama.output.weight)


def test_bytes_and_flops_count_both_matrices_but_a_lookup_costs_no_product(tiny_supernet, llama):
    n_weights = 50 * 64
    for space, net in ((tiny_supernet.space, tiny_supernet), (llama.space, llama)):
        for genome in genomes(space):
            flops = subnet_flops(net, space.decode(genome), 12)
            assert flops == forward_flops(extract(net, genome), 12)
    tied, untied = (net.space.decode(net.space.largest) for net in (tiny_supernet, llama))
    assert subnet_flops(llama, untied, 12) == subnet_flops(tiny_supernet, tied, 12)
    more = 2 * n_weights + 4 * 16  # F16; and the divisors of the frequencies
    assert llama.n_bytes(untied) == tiny_supernet.n_bytes(tied) + more
    cheaper = {**untied, "embedding.format": "Q4_0"}
    inventory = llama.inventory(cheaper)
    assert inventory_bytes(inventory) == llama.n_bytes(cheaper)
    assert inventory["lookup.Q4_0.weights"] == n_weights and inventory["lookup.Q4_0.rows"] == 50
    for metric in ("ttft_ms", "decode_ms"):
        assert features(metric, inventory)["Q4_0.weights"] == inventory["Q4_0.weights"] - n_weights
    assert features("peak_memory_mb", inventory)["Q4_0.weights"] == inventory["Q4_0.weights"]


def test_training_reaches_both(llama, tokens):
    llama(tokens, llama.space.decode(llama.space.largest)).square().mean().backward()
    assert llama.output.weight.grad.abs().sum() > 0 and llama.embedding.weight.grad.abs().sum() > 0
    llama.zero_grad()


def test_rotary_positions_are_transformers(tokens):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for theta, head_dim in ((10000.0, 64), (500000.0, 128)):
        for scaling in (None, {**SCALING, "original_max_position_embeddings": 8192, "factor": 32.0}):
            parameters = {"rope_type": "llama3" if scaling else "default", "rope_theta": theta, **(scaling or {})}
            config = LlamaConfig(
                hidden_size=64, num_attention_heads=2, head_dim=head_dim, rope_parameters=parameters
            )  # fmt: skip
            cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(300).unsqueeze(0))
            rope = Rope(head_dim, theta, check_scaling("x", scaling))
            ours_cos, ours_sin = rope.table(300, None)
            torch.testing.assert_close(ours_cos, cos[0], rtol=0, atol=5e-5)
            torch.testing.assert_close(ours_sin.abs(), sin[0].abs(), rtol=0, atol=5e-5)
    divisors = rope.divisors()
    assert divisors[0] == 1 and divisors[-1] == pytest.approx(32) and ((divisors > 1) & (divisors < 32)).any()
    assert Rope(64, 1e4).divisors() is None


def test_settings_that_are_no_scaling(supernet_of):
    assert check_scaling("x", SCALING) == Llama3Scaling(**SCALING)
    wrong = {
        "must hold factor": {"factor": 8.0},
        "got factor, beta": {"factor": 8.0, "beta": 1.0},
        "x.factor must be a number above 0": {**SCALING, "factor": -1},
        "x.low_freq_factor must be": {**SCALING, "low_freq_factor": math.nan},
        "x.high_freq_factor must be": {**SCALING, "high_freq_factor": "4"},
        "must be below": {**SCALING, "low_freq_factor": 4.0},
    }
    for message, settings in wrong.items():
        with pytest.raises(UserError, match=message):
            check_scaling("x", settings)
    with pytest.raises(UserError, match=r"model\.rope_scaling must hold"):
        supernet_of(rope_scaling={})
    with pytest.raises(UserError, match=r"model\.output_formats"):
        supernet_of(tied=False)
