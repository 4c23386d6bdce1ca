import json

import pytest
import torch
from omegaconf import OmegaConf

from supernet.config import build
from supernet.errors import UserError
from supernet.files import write_json, write_text
from supernet.run import build_supernet, gates_json, load_supernet, save_supernet

FORMATS = ["Q4_0", "F16"]
MODEL = {
    "_target_": "supernet.model.Supernet",
    "_partial_": True,
    "context_length": 64,
    "n_layers": 1,
    "d_model": [32, 64],
    "head_dim": 32,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "embedding_formats": FORMATS,
    "blocks": {
        "attention": {
            "_target_": "supernet.blocks.attention.ElasticAttention",
            "_partial_": True,
            "head_dim": 32,
            "kv_heads": [1],
            "heads_per_kv": [1, 2],
            "qkv_formats": FORMATS,
            "o_formats": FORMATS,
            "droppable": True,
        },
        "mlp": {
            "_target_": "supernet.blocks.swiglu.ElasticSwiGLU",
            "_partial_": True,
            "width": [32, 64],
            "gate_up_formats": FORMATS,
            "down_formats": FORMATS,
            "droppable": False,
        },
    },
}


DATA = {"config": {"_target_": "supernet.data.prepare"}, "hash": "abc"}


@pytest.fixture
def run(tmp_path):
    """Return a finished run and the supernet in it."""
    folder = tmp_path / "toy" / "supernet"
    folder.mkdir(parents=True)
    supernet = build_supernet(MODEL, 40)
    save_supernet(folder, supernet, MODEL)
    write_text(folder / "tokenizer.json", "{}")
    write_json(folder / "data.json", DATA)
    write_json(folder / "gates.json", gates_json(None, [], []))
    write_json(folder / "summary.json", {"name": "toy"})
    return tmp_path / "toy"


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_supernet_is_read_as_it_was_written(run):
    trained = load_supernet(run)
    again = load_supernet(run).supernet
    assert trained.supernet.vocab_size == 40
    assert trained.supernet.space.genes == again.space.genes
    for a, b in zip(trained.supernet.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (trained.gates["modes"], trained.data, trained.tokenizer_json) == ([], DATA, "{}")


def test_weights_survive_the_file(run):
    supernet = build_supernet(MODEL, 40)
    save_supernet(run / "supernet", supernet, MODEL)
    loaded = load_supernet(run).supernet.state_dict()
    for name, weight in supernet.state_dict().items():
        assert torch.equal(loaded[name], weight), name


def test_a_missing_run(tmp_path):
    with pytest.raises(UserError, match=r"gone does not exist; `python train\.py \+experiment=NAME`"):
        load_supernet(tmp_path / "gone")


def test_an_unfinished_run(run):
    (run / "supernet" / "summary.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        load_supernet(run)


@pytest.mark.parametrize("name", ["space.json", "gates.json", "data.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file(run, name):
    (run / "supernet" / name).unlink()
    with pytest.raises(UserError, match=rf"{name}.* missing"):
        load_supernet(run)


@pytest.mark.parametrize("name", ["space.json", "gates.json", "data.json", "summary.json"])
def test_another_version(run, name):
    change_json(run / "supernet" / name, version=99)
    with pytest.raises(UserError, match=rf"{name} has format version 99"):
        load_supernet(run)


def test_damaged_weights(run):
    path = run / "supernet" / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-100], whole[:50], b"\xff" * 200):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_supernet(run)


def test_weights_of_another_shape(run):
    change_json(run / "supernet" / "space.json", vocab_size=41)
    with pytest.raises(UserError, match=r"(?s)is damaged: .*embedding\.weight"):
        load_supernet(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(run, value):
    supernet = load_supernet(run).supernet
    with torch.no_grad():
        supernet.norm.weight[3] = value
    save_supernet(run / "supernet", supernet, MODEL)
    with pytest.raises(UserError, match="not finite"):
        load_supernet(run)


def test_genes_that_are_not_the_models(run):
    genes = json.loads((run / "supernet" / "space.json").read_text())["genes"]
    genes[0]["choices"] = [32, 96]
    change_json(run / "supernet" / "space.json", genes=genes)
    with pytest.raises(UserError, match="its genes are not those of its model"):
        load_supernet(run)
    change_json(run / "supernet" / "space.json", genes=[1])
    with pytest.raises(UserError, match="the search space is damaged"):
        load_supernet(run)


@pytest.mark.parametrize("where", ["model", "attention"])
def test_a_run_directory_runs_no_code(run, where):
    """Only what `conf/` names is called, wherever in the model it is written."""
    evil = {"_target_": "os.system", "command": f"touch {run}/evil"}
    model = json.loads(json.dumps(MODEL))
    if where == "model":
        model = evil
    else:
        model["blocks"]["attention"] = evil
    change_json(run / "supernet" / "space.json", model=model)
    with pytest.raises(UserError, match=r"os\.system is no target of conf/"):
        load_supernet(run)
    assert not (run / "evil").exists()


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "builtins.eval"},
        {"deep": [{"er": {"_target_": "subprocess.run"}}]},
        [{"_target_": "supernet.files.sha256"}],
    ],
)
def test_targets_are_whitelisted_at_any_depth(node):
    with pytest.raises(UserError, match="is no target of conf/"):
        build(OmegaConf.create(node))


def test_targets_are_whitelisted_in_plain_settings():
    with pytest.raises(UserError, match="is no target of conf/"):
        build({"_target_": "supernet.files.sha256", "path": "x"})


def test_a_constructors_complaint_names_the_target():
    schedule = {"_target_": "supernet.sandwich.Schedule", "alone_stepz": 3}
    with pytest.raises(UserError, match=r"supernet\.sandwich\.Schedule: .*alone_stepz"):
        build(OmegaConf.create(schedule))
    nested = json.loads(json.dumps(MODEL))
    nested["blocks"]["mlp"]["width"] = [64, 32]
    with pytest.raises(UserError, match=r"^model\.blocks\.mlp\.width must ascend"):
        build_supernet(nested, 40)
