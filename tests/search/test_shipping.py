"""What a runtime's own quantizer makes: judged by the runtime, kept, and a line where it fails."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from search.entries import ships_tuned
from search.finalists import Judge
from search.session import FINALISTS
from search.shipping import Shipyard
from search.stage import say_finished
from search.targets import Runtime
from supernet.errors import UserError
from supernet.files import write_json
from supernet.losses import score_tokens
from supernet.original import keep_original
from supernet.pretrained.load import open_checkpoint
from supernet.subnet import extract
from tests.supernet.llamas import save_llama


class FakeRuntime(Runtime):
    """Its artifact is the decoder; it quantizes to one kind, and runs another not."""

    file_name = "net.txt"
    quantizer_name = "fake"

    def __init__(self, **settings):
        self.name, self.quantizer, self.kv_bytes_per_value = "fake_target", ("good", "refused", "broken"), 2.0
        self.made, self.missing = [], None
        vars(self).update(settings)

    def available(self):
        return self.missing

    def supports(self, architecture):
        return None

    def export(self, decoder, tokenizer_json, folder, files):
        self.decoder = decoder
        assert files == {"LICENSE": "free"}
        assert {linear.format.name for linear in decoder.linears()} == {"F16"}
        (folder / self.file_name).touch(exist_ok=False)  # once for all kinds

    def quantized(self, path, kind, folder):
        assert path.exists()
        self.made.append(kind)
        if kind == "refused":
            raise UserError("rows of 33 weights")
        return folder / kind, 2_500_000

    def loads(self, path):
        return None

    def measure(self, path):
        return {"built": path.name != "broken", "reason": "killed by SIGABRT", "decode_ms": 1.0}

    def token_scores(self, path, rows):
        return tuple(part.numpy() for part in score_tokens(self.decoder, torch.from_numpy(rows), 2))

    def generate(self, path, prompt, n_tokens, seed):
        raise NotImplementedError


@pytest.fixture
def yard(tiny_supernet, tmp_path):
    trained = SimpleNamespace(
        supernet=tiny_supernet, tokenizer_json="{}", tokenizer_files={"LICENSE": "free"}, folder=tmp_path / "run"
    )
    scorer = SimpleNamespace(trained=trained, data=None, targets={}, known=lambda genome: {"size_mb": 5.0})
    config = SimpleNamespace(exports={}, finetune=None)
    yard = Shipyard(config, tmp_path, scorer, "python search.py")
    rng = torch.Generator().manual_seed(0)
    valid, test = (torch.randint(50, (3, 9), generator=rng) for _ in range(2))
    yard.judge = Judge(valid, test, 2, torch.zeros(3, 8, dtype=torch.long), ["all"])
    yard.baseline = lambda name, genome: {"fine_tuned": None, "inherited": {"valid_loss": 4.0}}
    return yard


def test_what_the_quantizer_makes_is_judged_and_kept(yard, capsys):
    runtime = FakeRuntime()
    (entry,) = yard.quantizer_baselines(runtime)
    assert capsys.readouterr().out == "fake refused: rows of 33 weights\nfake broken: killed by SIGABRT\n"
    assert entry["name"] == "fake good" and entry["genome"] is None and entry["scores"] == {"size_mb": 2.5}
    assert entry["inherited"] == yard.judge.scores(runtime.decoder) and entry["fine_tuned"] is None
    assert list(entry["on"]) == ["fake_target"] and entry["on"]["fake_target"]["measured"]["decode_ms"] == 1.0
    assert yard.quantizer_baselines(runtime) == [entry]
    assert runtime.made == ["good", "refused", "broken", "refused", "broken"]


def test_the_largest_net_is_fine_tuned_unless_that_made_it_worse(yard, tiny_supernet):
    tuned = extract(tiny_supernet, tiny_supernet.space.largest)
    with torch.no_grad():
        tuned.norm.weight.mul_(2)
    (name, _), *_ = tiny_supernet.space.baselines()
    folder = yard.folder / "nets" / name.replace(" ", "_")
    folder.mkdir(parents=True)
    save_file(tuned.state_dict(), folder / "model.safetensors")
    for loss, doubled in ((3.9, True), (4.1, False)):
        yard.baseline = lambda *_, loss=loss: {"fine_tuned": {"valid_loss": loss}, "inherited": {"valid_loss": 4.0}}
        vars(yard).pop("best_largest", None)
        decoder, better = yard.best_largest
        assert better is doubled
        assert torch.equal(decoder.norm.weight, tuned.norm.weight) is doubled


@pytest.mark.parametrize("gain", [torch.nan, 2.0])
def test_what_fine_tuning_ruined_does_not_ship(yard, tiny_supernet, monkeypatch, capsys, gain):
    tuned = extract(tiny_supernet, tiny_supernet.space.largest)
    with torch.no_grad():
        tuned.norm.weight.mul_(gain)
        tuned.embedding.weight.mul_(gain)
    yard.tuner = SimpleNamespace(tuned=lambda work, name, genome: (tuned, None))
    yard.finetuning = SimpleNamespace(steps=1, baselines=True)
    yard.as_run = lambda decoder: copy.deepcopy(decoder).freeze_formats()
    yard.scorer.costs = lambda architecture: {}
    entry = Shipyard.baseline(yard, "largest", tiny_supernet.space.largest)
    kept = json.loads((yard.work("largest") / "entry.json").read_text(), parse_constant=pytest.fail)  # no NaN
    out = capsys.readouterr().out
    if gain == 2.0:
        assert kept["fine_tuned"]["valid_loss"] > kept["inherited"]["valid_loss"]
        assert "largest: fine-tuning took its loss on valid from" in out
    else:
        assert kept["fine_tuned"] is None and "largest: fine-tuning ended in losses that are no numbers, so" in out
    assert not ships_tuned(entry)


@torch.inference_mode()
def test_finalists_learn_from_the_original_where_the_run_keeps_it(yard, tiny_supernet, tokens):
    largest = extract(tiny_supernet, tiny_supernet.space.largest).freeze_formats()
    assert torch.equal(yard.teacher(tokens), largest(tokens))
    model = save_llama(yard.folder / "llama", vocab_size=50)
    keep_original(open_checkpoint(yard.folder / "llama"), yard.trained.folder)
    del yard.teacher
    torch.testing.assert_close(yard.teacher(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_file_that_writes_no_text_ends_no_search(yard, tiny_supernet, tmp_path, tokens):
    def generate(*_):
        raise UserError("the prompt is too long")

    runtime = FakeRuntime(generate=generate, token_scores=lambda path, rows: (np.ones((1, 1)), np.ones((1, 1))))
    (tmp_path / runtime.file_name).touch()
    yard.data = SimpleNamespace(config={"sequence_length": 11}, evaluation_batch=lambda *_: tokens)
    yard.config = SimpleNamespace(prompt="x", seed=0, eval_batch_size=2)
    found = yard.run_on(runtime, extract(tiny_supernet, tiny_supernet.space.largest), tmp_path)
    assert found["measured"]["built"] and found["measured"]["reason"] == "the prompt is too long"
    assert found["sample"] is None and found["runtime_test"]["our_loss"] > 0


def test_the_closing_lines_say_what_did_not_run(tmp_path, capsys):
    def entry(name, measured):
        scores = {"test_loss": 2.0, "test_accuracy": 0.5}
        shown = {"name": name, "inherited": scores, "fine_tuned": None, "scores": {"size_mb": 1.0}}
        return {**shown, "measured": measured, "id": 3, "export": "export/3"}

    ran, killed = {"built": True, "decode_ms": 1.0}, {"built": False, "reason": "killed by SIGILL"}
    nets = [entry("finalist 3", killed), entry("finalist 4", ran), entry("largest F16", None)]
    found = {"targets": {"phone": {"finalists": nets, "baselines": [entry("smallest", killed)]}}}
    write_json(tmp_path / FINALISTS, found)
    say_finished(SimpleNamespace(folder=tmp_path, finished=False, config=SimpleNamespace(run="runs/x")))
    assert "\nphone failed on finalist 3, smallest: killed by SIGILL\n" in capsys.readouterr().out


def test_no_quantizer_where_the_runtime_is_not(yard):
    assert yard.quantizer_baselines(FakeRuntime(missing="pip install fake")) == []
    assert yard.quantizer_baselines(FakeRuntime(hardware="phone.json")) == []
    assert yard.quantizer_baselines(FakeRuntime(quantizer=())) == []


def test_kinds_are_no_part_of_what_a_cost_depends_on():
    assert "quantizer" not in FakeRuntime().settings and "made" in FakeRuntime().settings
