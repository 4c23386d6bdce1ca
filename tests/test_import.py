"""`train.py +experiment=compress` end to end, at toy size: from a folder of Hugging Face to a search's largest net."""

import shutil

import pytest
import torch

from supernet.original import kept_original
from supernet.pretrained.load import open_checkpoint
from supernet.run import load_supernet
from supernet.tokenizer import train_tokenizer
from tests.scripts import contents, read, workplace

COMPRESS = (
    "+experiment=compress",
    "data.corpus.paths=[text]",
    "batch_size=4",
    "sequence_length=32",
    "model.d_model=[0.5,1.0]",
    "eval_sequences=8",
    "schedule.joint_steps=16",
    "schedule.warmup_steps=2",
    "trainer.checkpoint_every=4",
)


SHORT = ("evaluations=12", "n_finalists=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def llama(place):
    """Return a random Llama with a byte-level tokenizer of fewer tokens, and 172 hidden channels."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=304,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    folder = place.folder / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    texts = [path.read_text() for path in sorted((place.folder / "text").iterdir())]
    train_tokenizer(texts, 300).save(str(folder / "tokenizer.json"))
    (folder / "LICENSE").write_text("Use it as you like.\n")
    return folder


def test_an_experiment_without_a_checkpoint(place):
    assert "model.init" in place.start("train.py", "+experiment=compress", "data.corpus.paths=[text]").end().error


@pytest.mark.slow
def test_a_llama_is_compressed(place, llama, monkeypatch):
    from transformers import LlamaForCausalLM

    run = place.runs / "compressed"
    started = place.start("train.py", *COMPRESS, "name=killed_import", f"model.init={llama}")
    assert started.kill_when(lambda: any((place.runs / "killed_import").glob("checkpoints/*.ckpt")))
    for name in ("compressed", "killed_import"):
        place.start("train.py", *COMPRESS, f"name={name}", f"model.init={llama}").end().fine  # noqa: B018
    weights = "model.safetensors"
    assert contents(run / "supernet")[weights] == contents(place.runs / "killed_import" / "supernet")[weights]

    summary, space = (read(run / "supernet" / f"{name}.json") for name in ("summary", "space"))
    assert summary["pretrained"]["padded"] == {"model.blocks.mlp.width": [172, 192]} and summary["flops_before"] == 0
    assert summary["licenses"] == {"LICENSE": "Use it as you like.\n"}
    assert (space["vocab_size"], space["model"]["d_model"], space["model"]["tied"]) == (304, [32, 64], False)
    assert space["model"]["blocks"]["mlp"]["width"] == [96, 128, 160, 192]
    assert "d_model:\n  - 32\n  - 64" in (run / "config.yaml").read_text()
    out = place.start("train.py", *COMPRESS, "name=compressed", f"model.init={llama}").end().fine
    assert "is finished" in out

    shutil.move(llama, place.folder / "elsewhere")  # the run is complete without it
    try:
        assert load_supernet(run).supernet.output is not None
        place.search(f"run={run}", "budget.size_mb=0.2", *SHORT).fine  # noqa: B018
    finally:
        shutil.move(place.folder / "elsewhere", llama)
    assert kept_original(run).fingerprint() == open_checkpoint(llama).fingerprint()
    best = next((run / "search" / "main" / "export").iterdir())
    assert read(best / "hf" / "config.json")["tie_word_embeddings"] is False
    assert (best / "hf" / "LICENSE").read_text() == "Use it as you like.\n"

    finalists = read(run / "search" / "main" / "finalists.json")["targets"]["llama_cpp"]
    original, largest = (by_name(finalists["baselines"], name) for name in ("original F16", "largest F16"))
    monkeypatch.chdir(place.folder)  # the paths of a run are relative
    rows = load_supernet(run).tokens().evaluation_batch("test", 8, 32)
    with torch.inference_mode():
        wanted = LlamaForCausalLM.from_pretrained(llama)(rows[:, :-1]).logits
        wanted = torch.nn.functional.cross_entropy(wanted.flatten(0, 1), rows[:, 1:].flatten()).item()
    assert original["inherited"]["test_loss"] == pytest.approx(wanted, rel=1e-4) and original["genome"] is None
    assert original["inherited"]["test_loss"] != largest["inherited"]["test_loss"]  # that one was trained on
    assert original["scores"]["size_mb"] == largest["scores"]["size_mb"]
    if original["measured"] is not None:  # llama.cpp is installed
        assert original["runtime_test"]["loss"] == pytest.approx(original["runtime_test"]["our_loss"], rel=1e-3)
        assert original["sample"] and largest["sample"]


def by_name(entries, name):
    (found,) = [entry for entry in entries if entry["name"] == name]
    return found


@pytest.mark.slow
def test_a_llama_is_compressed_without_any_text(place, llama):
    run, cache = place.runs / "dreamt", place.folder / "dreams"
    without_text = [override for override in COMPRESS if not override.startswith(("data.", "model.d_model"))]
    without_text += ["data=teacher", f"model.init={llama}", f"data.cache_dir={cache}", "teacher.hidden=0.1"]
    sampling = "data.sampling.n_tokens=8000", "data.sampling.batch_size=16"
    started = place.start("train.py", *without_text, *sampling, "name=dreamt")
    assert started.kill_when(lambda: len(list(cache.rglob("*.npy"))) >= 2)
    place.start("train.py", *without_text, *sampling, "name=dreamt").end().fine  # noqa: B018
    wanted = contents(cache)

    elsewhere = shutil.move(llama, place.folder / "elsewhere")
    shutil.rmtree(cache)
    try:
        tokens = load_supernet(run).tokens()  # sampled again, from what the run keeps
        place.search(f"run={run}", "budget.size_mb=0.2", "evaluations=12", "n_finalists=1").fine  # noqa: B018
    finally:
        shutil.move(elsewhere, llama)
    made = contents(cache)
    assert {k: v for k, v in made.items() if "index" not in k} == {k: v for k, v in wanted.items() if "index" not in k}
    assert tokens.hash == read(run / "supernet" / "summary.json")["corpus"]


@pytest.mark.slow
def test_what_cannot_be_taken_is_one_line(place, llama):
    def refusal(*overrides):
        return place.start("train.py", *COMPRESS, "name=refused_import", *overrides).end().error

    assert "runs/nowhere does not exist" in refusal("model.init=runs/nowhere")
    assert "model.n_layers is 3, but llama has 2" in refusal("model.init=llama", "model.n_layers=3")
    assert "exceeds model.context_length=128" in refusal("model.init=llama", "sequence_length=256")
    assert "sampling.checkpoint must be model.init" in refusal(
        "model.init=llama", "data=mixed", "data.sampling.checkpoint=x"
    )
    assert "teacher: share must be" in refusal("model.init=llama", "teacher.share=2")
    copy = shutil.copytree(llama, place.folder / "without")
    (copy / "tokenizer.json").unlink()
    assert "without has neither tokenizer.json nor tokenizer.model" in refusal("model.init=without")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "model.init: without holds only pytorch_model.bin, a pickle" in refusal("model.init=without")
    assert not (place.runs / "refused_import").exists()
