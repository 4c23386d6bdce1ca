import numpy as np
import pytest
import torch

from supernet.gates import Gates, draw


@pytest.fixture
def gates(toy_space):
    gates = Gates(toy_space, 2, 2.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for logits in gates.logits:
            logits.add_(torch.randn(logits.shape, generator=generator))
    return gates


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def test_probabilities_sum_to_one_without_padding(gates, toy_space):
    assert gates.probabilities().shape == (2, len(toy_space), 4)
    for one_set in gates.probabilities():
        distributions = gates.distributions(one_set)
        assert list(distributions) == [gene.name for gene in toy_space]
        for gene in toy_space:
            assert distributions[gene.name].shape == (len(gene.choices),)
            assert distributions[gene.name].sum().item() == pytest.approx(1)


def test_the_start_is_uniform_but_for_switches(toy_space):
    distributions = Gates(toy_space, 1, 2.0)
    start = distributions.expected(0)
    assert torch.allclose(start["a.width"], torch.full((4,), 0.25))
    assert start["a.active"][1].item() == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert start["c.active"].tolist() == [1.0]


@pytest.mark.parametrize("temperature", [5.0, 0.5, 0.05])
@pytest.mark.parametrize("hard", [False, True])
def test_samples_are_distributions_with_finite_gradients(gates, toy_space, temperature, hard):
    for seed in range(10):
        gates.zero_grad()
        choices = gates.sample(1, temperature, hard, noise(seed))
        total = 0
        for i, gene in enumerate(toy_space):
            row = choices[gene.name]
            assert row.sum().item() == pytest.approx(1) and (row > -1e-6).all()
            if hard:
                assert sorted(row.tolist()) == pytest.approx([0.0] * (len(gene.choices) - 1) + [1.0])
            total = total + (row * torch.arange(1.0, len(row) + 1) * (i + 1)).sum()
        total.backward()
        gradient = gates.logits[1].grad
        assert gradient.isfinite().all() and gates.logits[0].grad is None
        for gene, row in zip(toy_space, gradient, strict=True):
            assert not row[len(gene.choices) :].any()


def test_a_hard_sample_is_the_soft_ones_likeliest_with_its_gradient(gates, toy_space):
    weights = torch.arange(1.0, 5.0)
    gradients = []
    for hard in (False, True):
        gates.zero_grad()
        (gates.sample(0, 1.0, hard, noise(3))["a.width"] * weights).sum().backward()
        gradients.append(gates.logits[0].grad.clone())
    torch.testing.assert_close(*gradients)
    soft, hard_sample = (gates.sample(0, 1.0, hard, noise(3)) for hard in (False, True))
    for gene in toy_space:
        assert soft[gene.name].argmax() == hard_sample[gene.name].argmax()


def test_samples_repeat_with_the_noise_and_follow_the_probabilities(gates):
    once, again = (gates.sample(0, 1.0, False, noise(7)) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    generator, counts = noise(), torch.zeros(4)
    for _ in range(2000):
        counts += gates.sample(0, 1.0, True, generator)["a.width"].detach()
    wanted = gates.expected(0)["a.width"]
    torch.testing.assert_close(counts / 2000, wanted.detach(), atol=0.04, rtol=0)


def test_entropy(gates, toy_space):
    uniform = Gates(toy_space, 1, 0.0)
    wanted = np.mean([np.log(len(gene.choices)) for gene in toy_space])
    assert uniform.entropy(0).item() == pytest.approx(wanted, rel=1e-5)
    assert gates.entropy(0) < uniform.entropy(0)
    gates.entropy(0).backward()
    assert gates.logits[0].grad.isfinite().all() and gates.logits[1].grad is None


def test_the_mode_is_a_canonical_genome(gates, toy_space):
    for index in range(2):
        assert toy_space.check(gates.mode(index)) == gates.mode(index)
    with torch.no_grad():
        gates.logits[0][toy_space.position["a.active"], 0] = 50
        gates.logits[0][toy_space.position["a.width"], 3] = 50
    assert toy_space.decode(gates.mode(0))["a.width"] == 1


def test_draw_follows_the_distributions(gates, toy_space):
    probabilities = {n: row.tolist() for n, row in gates.expected(0).items()}
    rng = np.random.default_rng(0)
    genomes = [draw(toy_space, probabilities, rng) for _ in range(1000)]
    assert all(toy_space.check(genome) == genome for genome in genomes)
    position = toy_space.position["fmt"]
    shares = np.bincount([genome[position] for genome in genomes], minlength=3) / 1000
    assert shares == pytest.approx(probabilities["fmt"], abs=0.05)
    rounded = {name: [round(p, 5) for p in row] for name, row in probabilities.items()}
    assert draw(toy_space, rounded, rng)  # as gates.json keeps them: they need not sum to 1 exactly
