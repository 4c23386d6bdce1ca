"""The hardware model finds the device behind its probes, and its file is read or refused."""

import json

import numpy as np
import pytest
import torch

from supernet.errors import UserError
from supernet.hardware import (
    METRICS,
    MIN_PROBES,
    HardwareModel,
    Probe,
    features,
    in_every_format,
    probe_genomes,
    read_hardware,
    read_model,
    write_entries,
)
from supernet.randomness import generator


def synthetic_device(seed=0):
    """Return metric -> inventory -> cost, linear in the features with coefficients that are drawn."""
    drawn = {}

    def cost(metric, inventory):
        total = 0.0
        for name, value in features(metric, inventory).items():
            coefficient = drawn.setdefault((metric, name), generator(seed, f"{metric} {name}").uniform(0.2, 1))
            # Weights by the thousand, blocks by ones: each shall matter.
            total += coefficient * value / (1e4 if name.endswith("weights") else 1e2 if "." in name else 1)
        return total

    return lambda inventory: {metric: float(cost(metric, inventory)) for metric in METRICS}


def probes_of(supernet, n, device, seed=0):
    found = []
    for genome in probe_genomes(supernet.space, n, seed):
        inventory = supernet.inventory(supernet.space.decode(genome))
        found.append(Probe(genome, inventory, device(inventory)))
    return found


def test_a_linear_device_is_recovered(tiny_supernet):
    device = synthetic_device()
    model = HardwareModel.fit(probes_of(tiny_supernet, 48, device), device="synthetic", settings={"n_threads": 1})
    assert all(error < 1e-3 for error in model.errors.values())
    rng = np.random.default_rng(5)
    for _ in range(20):
        inventory = tiny_supernet.inventory(tiny_supernet.space.decode(tiny_supernet.space.sample(rng)))
        assert model.predict(inventory) == pytest.approx(device(inventory), rel=1e-3)


def test_no_coefficient_is_negative_and_errors_are_those_of_nets_left_out(tiny_supernet):
    rng, device = np.random.default_rng(0), synthetic_device()

    def noisy(inventory):
        return {metric: cost * rng.lognormal(0, 0.05) for metric, cost in device(inventory).items()}

    model = HardwareModel.fit(probes_of(tiny_supernet, 40, noisy))
    assert all(c >= 0 for one in model.coefficients.values() for c in one.values())
    for metric in METRICS:
        in_sample = [abs(model.predict(p.inventory)[metric] / p.measured[metric] - 1) for p in model.probes]
        assert np.mean(in_sample) < model.errors[metric] < 0.15


def test_what_is_predicted_of_soft_choices_is_the_mean_with_a_gradient(tiny_supernet):
    model = HardwareModel.fit(probes_of(tiny_supernet, 30, synthetic_device()))
    space = tiny_supernet.space
    noise = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(g.choices), dtype=torch.float64, generator=noise).requires_grad_() for g in space]
    soft = {gene.name: row.softmax(-1) for gene, row in zip(space, logits, strict=True)}
    predicted = model.predict(tiny_supernet.inventory(soft))
    rng, n = np.random.default_rng(0), 4000
    rows, drawn = [row.detach().numpy() for row in soft.values()], []
    for _ in range(n):
        genome = space.canonical([int(rng.choice(len(p), p=p)) for p in rows])
        drawn.append([model.predict(tiny_supernet.inventory(space.decode(genome)))[m] for m in METRICS])
    wanted, tolerance = np.mean(drawn, 0), 3 * np.std(drawn, 0) / n**0.5
    assert (np.abs([predicted[m].item() for m in METRICS] - wanted) < tolerance).all()
    assert (tolerance < 0.05 * wanted).all()
    predicted["decode_ms"].backward()
    assert sum(row.grad.abs().sum() > 0 for row in logits) > len(logits) / 2


def test_probes_are_different_and_hold_every_choice(tiny_supernet, toy_space):
    genomes = probe_genomes(tiny_supernet.space, 30, 0)
    assert len(genomes) == len(set(genomes)) == 30
    assert genomes == probe_genomes(tiny_supernet.space, 30, 0) != probe_genomes(tiny_supernet.space, 30, 1)
    assert all(tiny_supernet.space.check(genome) == genome for genome in genomes)
    for i, gene in enumerate(tiny_supernet.space):
        assert {genome[i] for genome in genomes} == set(range(len(gene.choices))), gene.name
    assert len(probe_genomes(toy_space, 10**6 // 500, 0)) < toy_space.n_genomes  # ends where there are no more
    assert len(probe_genomes(tiny_supernet.space, 2, 0)) == 2


def test_a_genome_in_every_format(toy_space):
    genomes = in_every_format(toy_space, toy_space.largest)
    formats = [[toy_space.decode(genome)[name] for name in ("fmt", "a.fmt")] for genome in genomes]
    assert formats == [["Q4_0", "Q4_0"], ["Q8_0", "F16"], ["F16", "F16"]]


def test_nets_that_were_not_built_are_left_out(tiny_supernet):
    probes = probes_of(tiny_supernet, 12, synthetic_device())
    broken = [Probe(p.genome, p.inventory, None, "no memory") for p in probes]
    model = HardwareModel.fit([*probes[:8], *broken[8:]])
    assert model.predict(probes[0].inventory)["ttft_ms"] > 0 and len(model.probes) == 12
    with pytest.raises(UserError, match=f"4 of 12 probes.*{MIN_PROBES} are needed: no memory"):
        HardwareModel.fit([*probes[:4], *broken[4:]])


def test_a_metric_that_a_runtime_does_not_have_is_not_predicted(tiny_supernet):
    def without_memory(inventory):
        return {metric: cost for metric, cost in synthetic_device()(inventory).items() if metric != "peak_memory_mb"}

    model = HardwareModel.fit(probes_of(tiny_supernet, 12, without_memory))
    assert set(model.predict(model.probes[0].inventory)) == set(model.errors) == set(METRICS) - {"peak_memory_mb"}


# The file.


@pytest.fixture
def model(tiny_supernet):
    about = {"settings": {"kv_cache": "F16"}, "device": "synthetic", "kv_bytes_per_value": 2.0}
    return HardwareModel.fit(probes_of(tiny_supernet, 12, synthetic_device()), **about)


def test_a_model_survives_its_file(model, tmp_path):
    path = tmp_path / "hardware.json"
    write_entries(path, {"here": model.to_json(), "there": model.to_json()})
    read = read_hardware(path)
    assert list(read) == ["here", "there"]
    assert read["here"] == model
    assert read_model(path, "there") == model
    for target, message in (("elsewhere", "elsewhere is not among them"), (None, "say which")):
        with pytest.raises(UserError, match=f"holds the targets here, there: {message}"):
            read_model(path, target)


def test_a_file_of_probes_only_is_fitted_when_it_is_read(model, tmp_path):
    entry = {k: v for k, v in model.to_json().items() if k not in ("coefficients", "errors")}
    write_entries(tmp_path / "hardware.json", {"phone": entry})
    assert read_model(tmp_path / "hardware.json", "whatever") == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"version": 9}, "format version 9"),
        (lambda c: {"version": 1}, "holds no targets"),
        (lambda c: c | {"targets": {"here": {}}}, r"hardware.json \(here\) is damaged"),
        (lambda c: c | {"targets": {"here": c["targets"]["here"] | {"planned": 40}}}, "12 of 40 probes"),
        (lambda c: c | {"targets": {"here": c["targets"]["here"] | {"coefficients": {"ttft_ms": 3}}}}, "is damaged"),
        (lambda c: c | {"targets": {"here": c["targets"]["here"] | {"probes": [{"genome": 3}] * 12}}}, "is damaged"),
    ],
)
def test_another_or_damaged_file_is_refused(model, tmp_path, change, message):
    path = tmp_path / "hardware.json"
    write_entries(path, {"here": model.to_json()})
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        read_hardware(path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="missing"):
        read_model(tmp_path / "hardware.json")


def test_formats_that_no_probe_had_are_refused(model, tiny_supernet, supernet_of):
    model.check(tiny_supernet.space, "phone.json")
    narrow = supernet_of(embedding_formats=("F16",), qkv_formats=("F16",), o_formats=("F16",), droppable=False)
    narrow_model = HardwareModel.fit(probes_of(narrow, 12, synthetic_device()))
    with pytest.raises(UserError, match=r"phone.json: none of its probes had weights in Q4_0"):
        HardwareModel(
            narrow_model.coefficients, {}, [p for p in narrow_model.probes if not p.inventory.get("Q4_0.weights")]
        ).check(tiny_supernet.space, "phone.json")
