"""Each objective against its definition, computed directly from the shipped weights."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from search.evaluation import Evaluator
from search.objectives import TargetObjective, score_name
from search.objectives.cost import BuildFailure, Decode, KVBytesPerToken, PeakMemory, Size
from search.objectives.quality import Divergence, Error, LongContextGap, Loss, QuantizationLoss, WorstSliceLoss
from supernet.config import CONF, build
from supernet.errors import UserError
from supernet.subnet import extract


@pytest.fixture(scope="module")
def rows():
    return torch.randint(50, (5, 17), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def genomes(tiny_supernet):
    space, rng = tiny_supernet.space, np.random.default_rng(1)
    return [space.largest, space.smallest, space.cheapest, *(space.sample(rng) for _ in range(4))]


def token_losses(supernet, genome, rows):
    with torch.no_grad():
        logits = extract(supernet, genome).freeze_formats()(rows[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return losses.view(rows[:, 1:].shape), logits


def every():
    return [build(next(iter(OmegaConf.load(path).values()))) for path in sorted((CONF / "objective").glob("*.yaml"))]


def test_files_are_named_like_their_scores():
    files = sorted((CONF / "objective").glob("*.yaml"))
    assert [path.stem for path in files] == [objective.name for objective in every()]
    assert [list(OmegaConf.load(path)) for path in files] == [[path.stem] for path in files]
    assert all(path.read_text().startswith("# @package objectives\n") for path in files)


def test_loss_and_error(tiny_supernet, rows, genomes):
    evaluator = Evaluator(tiny_supernet, rows, 5)
    for genome in genomes:
        losses, logits = token_losses(tiny_supernet, genome, rows)
        evaluation = evaluator.evaluation(genome)
        assert torch.equal(evaluation.losses, losses) and evaluation.losses.dtype == torch.float32
        assert Loss().scores(evaluation) == {"loss": losses.double().mean().item()}
        wrong = (logits.argmax(-1) != rows[:, 1:]).double().mean().item()
        assert Error().scores(evaluation) == {"error": pytest.approx(wrong)}


def test_size_is_the_supernets(tiny_supernet, genomes, rows):
    evaluator = Evaluator(tiny_supernet, rows, 2)
    for genome in genomes:
        size = Size().scores(evaluator.evaluation(genome))
        assert size == {"size_mb": tiny_supernet.n_bytes(tiny_supernet.space.decode(genome)) / 1e6}


def test_quantization_loss_is_against_the_structure_in_f16(supernet_of, rows):
    """The genes offer all formats, F16 too, so that structure has a genome of its own."""
    formats = {f"{name}_formats": ("Q4_0", "F16") for name in ("embedding", "qkv", "o", "gate_up", "down")}
    supernet = supernet_of(**formats)
    evaluator, rng = Evaluator(supernet, rows, 5), np.random.default_rng(3)
    for _ in range(5):
        genome = supernet.space.sample(rng)
        evaluation = evaluator.evaluation(genome)
        f16, _ = token_losses(supernet, supernet.space.with_format(genome, "F16"), rows)
        assert evaluation.full_precision_loss == f16.double().mean().item()
        wanted = evaluation.quality[0] - f16.double().mean().item()
        assert QuantizationLoss().scores(evaluation) == {"quantization_loss": wanted}
    assert QuantizationLoss().score(evaluator.evaluation(supernet.space.largest)) == 0


def test_divergence_is_from_the_largest_on_all_tokens(tiny_supernet, rows, genomes):
    evaluator = Evaluator(tiny_supernet, rows, 2, hurdles=[3], divergences=True)
    largest = token_losses(tiny_supernet, tiny_supernet.space.largest, rows)[1].log_softmax(-1)
    for genome in genomes:
        own = token_losses(tiny_supernet, genome, rows)[1].log_softmax(-1)
        wanted = F.kl_div(own, largest, reduction="none", log_target=True).sum(-1).mean().item()
        score = Divergence().scores(evaluator.evaluation(genome))
        assert score == {"divergence": pytest.approx(wanted, abs=1e-3)}  # the largest's are kept in half precision
    with pytest.raises(AssertionError, match="needs `divergences`"):
        _ = Evaluator(tiny_supernet, rows, 2, hurdles=[3]).evaluation(genomes[0]).divergence


def test_a_structure_is_scored_in_f16_once(tiny_supernet, rows, monkeypatch):
    evaluator = Evaluator(tiny_supernet, rows, 5)
    space = tiny_supernet.space
    genomes = [space.replace(space.largest, lambda g, i, k=k: min(i, k) if g.kind == "format" else i) for k in (0, 1)]
    first = evaluator.evaluation(genomes[0]).full_precision_loss
    monkeypatch.setattr(evaluator, "losses", None)
    assert evaluator.evaluation(genomes[1]).full_precision_loss == first


def test_long_context_gap(tiny_supernet, rows, genomes):
    evaluator = Evaluator(tiny_supernet, rows, 5)

    def gain(genome):
        losses = token_losses(tiny_supernet, genome, rows)[0].double()
        return (losses[:, :4].mean() - losses[:, 4:].mean()).item()

    for genome in genomes:
        wanted = gain(tiny_supernet.space.largest) - gain(genome)
        assert LongContextGap().scores(evaluator.evaluation(genome)) == {"long_context_gap": pytest.approx(wanted)}
    assert LongContextGap().score(evaluator.evaluation(tiny_supernet.space.largest)) == 0


@pytest.mark.parametrize("per_token", [False, True])
def test_worst_slice(tiny_supernet, rows, genomes, per_token):
    slices = torch.tensor([7, 2, 2, 7, 4])
    given = slices.unsqueeze(1).repeat(1, 16) if per_token else slices
    evaluator = Evaluator(tiny_supernet, rows, 5, slices=given)
    for genome in genomes:
        losses = token_losses(tiny_supernet, genome, rows)[0].double()
        wanted = max(losses[[0, 3]].mean(), losses[[1, 2]].mean(), losses[4].mean()).item()
        assert WorstSliceLoss().scores(evaluator.evaluation(genome)) == {"worst_slice_loss": pytest.approx(wanted)}


def test_a_slice_of_a_few_tokens_is_not_the_worst(tiny_supernet, rows):
    slices = torch.zeros(5, 16, dtype=torch.long)
    losses = token_losses(tiny_supernet, tiny_supernet.space.largest, rows)[0]
    slices[losses == losses.max()] = 3
    evaluation = Evaluator(tiny_supernet, rows, 5, slices=slices).evaluation(tiny_supernet.space.largest)
    wanted = losses[slices == 0].double().mean().item()
    assert WorstSliceLoss().score(evaluation) == pytest.approx(wanted)


def test_without_slices_the_rows_are_parted(tiny_supernet, rows):
    long = rows.repeat(4, 1)[:16]
    evaluator = Evaluator(tiny_supernet, long, 4)
    assert evaluator.slices[:, 0].tolist() == [i // 2 for i in range(16)]
    assert evaluator.slices.shape == (16, 16)


def test_predicted_costs_come_from_each_target(tiny_supernet, rows):
    def costs(architecture):
        assert architecture == tiny_supernet.space.decode(tiny_supernet.space.smallest)
        return {"cpu": {"decode_ms": 1.5, "kv_bytes_per_token": 512}, "phone": {"decode_ms": 4.0}}

    def scores(objective, *targets):
        evaluator = Evaluator(tiny_supernet, rows, 5, targets=targets, costs=costs)
        return objective.scores(evaluator.evaluation(tiny_supernet.space.smallest))

    assert scores(Decode(), "cpu") == {"decode_ms": 1.5}
    assert scores(Decode(), "cpu", "phone") == {"decode_ms@cpu": 1.5, "decode_ms@phone": 4.0}
    assert scores(KVBytesPerToken(), "cpu") == {"kv_bytes_per_token": 512.0}
    with pytest.raises(UserError, match=r"peak_memory_mb: .* target cpu predicts decode_ms, kv_bytes_per_token"):
        scores(PeakMemory(), "cpu")
    with pytest.raises(UserError, match="tablet predicts nothing"):
        scores(Decode(), "tablet")


def test_build_failure(tiny_supernet, rows):
    def builds(genome, target):
        return genome == tiny_supernet.space.smallest and target == "cpu"

    evaluator = Evaluator(tiny_supernet, rows, 5, targets=("cpu", "phone"), builds=builds)
    scores = BuildFailure().scores(evaluator.evaluation(tiny_supernet.space.smallest))
    assert scores == {"build_failure@cpu": 0.0, "build_failure@phone": 1.0}


def test_names_by_target():
    assert score_name("decode_ms", "cpu", ["cpu"]) == "decode_ms"
    assert score_name("decode_ms", "cpu", ["cpu", "phone"]) == "decode_ms@cpu"


def test_a_cheap_score_runs_no_network(tiny_supernet, rows, monkeypatch):
    monkeypatch.setattr("search.evaluation.Network", None)
    metrics = ("ttft_ms", "decode_ms", "decode_p95_ms", "peak_memory_mb", "kv_bytes_per_token")
    evaluator = Evaluator(
        tiny_supernet, rows, 2, targets=("cpu",), costs=lambda _: {"cpu": dict.fromkeys(metrics, 1.0)}
    )
    evaluation = evaluator.evaluation(tiny_supernet.space.largest)
    cheap = [objective for objective in every() if objective.cheap]
    assert {o.name for o in cheap} == {"size_mb", *metrics}
    assert all(set(o.scores(evaluation)) == {o.name} for o in cheap)
    assert all(isinstance(o, TargetObjective) == (o.name != "size_mb") for o in cheap)


def test_each_thing_is_computed_once(tiny_supernet, rows, monkeypatch):
    evaluation = Evaluator(tiny_supernet, rows, 2).evaluation(tiny_supernet.space.largest)
    score = Loss().score(evaluation)
    monkeypatch.setattr(evaluation.evaluator, "losses", None)
    assert Loss().score(evaluation) == score and 0 <= Error().score(evaluation) <= 1
