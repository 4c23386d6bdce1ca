import json

import pytest
import torch

from search.evaluation import Evaluator
from search.findings import findings
from search.profile import SENSITIVITY, read_profile
from search.sensitivity import measure_sensitivity
from supernet.errors import UserError
from supernet.files import read_json
from supernet.genes import Gene, SearchSpace
from tests.conftest import VOCAB


@pytest.fixture(scope="module")
def evaluator(tiny_supernet):
    rows = torch.randint(VOCAB, (4, 17), generator=torch.Generator().manual_seed(3))
    return Evaluator(tiny_supernet, rows, 2, reuse_mb=10, divergences=True)


@pytest.fixture(scope="module")
def path(evaluator, tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / SENSITIVITY
    measure_sensitivity(evaluator, path)
    return path


def test_a_rise_is_that_of_one_gene_alone(evaluator, path):
    space, content = evaluator.trained.space, read_json(path)
    largest = evaluator.evaluation(space.largest)
    assert content["reference"]["loss"] == pytest.approx(largest.quality[0])
    assert [gene["name"] for gene in content["genes"]] == [gene.name for gene in space]
    for i, entry in enumerate(content["genes"]):
        assert entry["rise"][-1] == entry["standard_error"][-1] == entry["bytes_saved"][-1] == 0
        for k in range(len(entry["choices"]) - 1):
            net = evaluator.evaluation(space.canonical([k if j == i else n for j, n in enumerate(space.largest)]))
            differences = (net.losses.double() - largest.losses.double()).mean(1)
            assert entry["rise"][k] == pytest.approx(differences.mean().item(), abs=1e-6)
            assert entry["standard_error"][k] == pytest.approx(differences.std().item() / 2, abs=1e-6)
            assert entry["divergence"][k] == pytest.approx(net.divergence)
            assert entry["bytes_saved"][k] == pytest.approx((largest.size_mb - net.size_mb) * 1e6)


def test_it_is_measured_once_and_repeats(evaluator, path, tmp_path):
    before = path.read_bytes()
    assert measure_sensitivity(evaluator, path).content == read_json(path)
    measure_sensitivity(evaluator, tmp_path / SENSITIVITY)
    assert path.read_bytes() == before == (tmp_path / SENSITIVITY).read_bytes()


def test_another_space_and_a_damaged_file_are_refused(evaluator, path, tmp_path, toy_space):
    with pytest.raises(UserError, match="another search space"):
        read_profile(path, toy_space)
    content = json.loads(path.read_text())
    del content["genes"][3]["rise"][0]
    (tmp_path / SENSITIVITY).write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        measure_sensitivity(evaluator, tmp_path / SENSITIVITY)


def test_a_single_sequence_is_refused(tiny_supernet, tmp_path):
    with pytest.raises(UserError, match=r"sensitivity\.sequences"):
        measure_sensitivity(Evaluator(tiny_supernet, torch.zeros(1, 9, dtype=torch.long), 2), tmp_path / SENSITIVITY)
    assert not list(tmp_path.iterdir())


def test_findings_say_what_is_true_of_every_layer_they_name():
    formats = ("Q2_K", "Q4_0", "Q8_0")
    space = SearchSpace(
        [Gene("embedding.format", formats, "format")]
        + [Gene(f"layers.{i}.attention.o_format", formats, "format") for i in range(4)]
        + [Gene(f"layers.{i}.mlp.down_format", formats, "format") for i in range(4)]
        + [Gene(f"layers.{i}.mlp.active", (0, 1), "switch") for i in range(2)]
        + [Gene("layers.1.mlp.gate_up_format", formats, "format", needs="layers.1.mlp.active")]  # void: it is dropped
        + [Gene("layers.0.mlp.width", (256, 512), "width"), Gene("layers.1.mlp.width", (512,), "width")]
    )
    rises = {
        "embedding.format": [0.5, 0.02, 0.0],
        "layers.0.attention.o_format": [0.9, 0.3, 0.0],
        "layers.1.attention.o_format": [0.9, 0.2, 0.0],
        "layers.2.attention.o_format": [0.001, 0.1, 0.0],  # Q2_K by luck alone
        "layers.3.attention.o_format": [None, 0.0, 0.0],
        "layers.0.mlp.active": [2.0, 0.0],
        "layers.1.mlp.active": [0.001, 0.0],
        "layers.1.mlp.gate_up_format": [0.007, 0.0, 0.0],
        "layers.0.mlp.width": [0.009, 0.0],
    }
    errors = {"embedding.format": [0.001, 0.011, 0.0]}
    content = {
        "reference": {"loss": 2.0},
        "genes": [
            {
                "name": gene.name,
                "choices": list(gene.choices),
                "rise": rises.get(gene.name, [0.0] * len(gene.choices)),
                "divergence": rises.get(gene.name, [0.0] * len(gene.choices)),
                "standard_error": errors.get(gene.name, [0.0] * len(gene.choices)),
            }
            for gene in space
        ],
    }
    assert findings(space, content)[1:] == [
        "Tolerated alone is not tolerated together: the divergences of all of it add up to 0.030 nats.",
        "embedding: needs Q4_0, Q2_K costs 0.500 nats.",
        "attention o: layers 0–2 need Q8_0, Q4_0 costs 0.100–0.300 nats; "
        "layer 3 needs Q4_0, Q2_K costs an unknown amount.",
        "mlp down: all layers tolerate Q2_K, the cheapest there is.",
        "mlp gate_up: layer 1 tolerates Q2_K, the cheapest there is.",
        "mlp: layer 0 must stay, dropping it costs 2.000 nats; layer 1 can be dropped.",
        "mlp width: layer 0 tolerates 256, the cheapest there is.",
    ]
