"""Checkpoint folders: in a fresh process transformers computes what we trained."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.finalists import Judge
from search.targets import nf4
from search.targets.huggingface import HuggingFace, HuggingFaceNF4, export
from search.targets.pytorch_nf4 import PyTorchNF4
from supernet.blocks.attention import ElasticAttention
from supernet.blocks.swiglu import ElasticSwiGLU
from supernet.errors import UserError
from supernet.genes import Architecture
from supernet.losses import evaluate
from supernet.model import Supernet
from supernet.randomness import generator
from supernet.subnet import Decoder, extract

VOCAB, HEAD_DIM, CONTEXT = 300, 32, 128
FORMAT_NAMES = ("Q4_0", "Q8_0", "F16")

# Runs where nothing of ours can be imported: it prints one JSON object a folder.
FRESH_PROCESS = """
import json, sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

remote, rows, folders = sys.argv[1] == "remote", np.load(sys.argv[2]), sys.argv[3:]
tokens = torch.from_numpy(rows)
for folder in folders:
    trust = {"trust_remote_code": remote}
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **trust)
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    model.eval()
    for module in model.modules():  # on some processors bitsandbytes multiplies in bfloat16, and rounds scales to it
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        out = model(tokens, labels=tokens)
    np.save(folder + "/logits.npy", out.logits.float().numpy())
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    prompt = tokens[:, :6]
    cached = model.generate(prompt, use_cache=True, **options)
    slow = model.generate(prompt, use_cache=False, **options)
    # Left padding must change nothing but the padding.
    padded = torch.cat((torch.zeros_like(prompt[:, :3]), prompt), 1)
    seen = torch.cat((torch.zeros_like(prompt[:, :3]), torch.ones_like(prompt)), 1)
    shifted = model.generate(padded, attention_mask=seen, **options)[:, 3:]
    print(json.dumps({
        "class": type(model).__name__,
        "packed": sum(type(parameter).__name__ == "Params4bit" for parameter in model.parameters()),
        "wrong_keys": [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]],
        "loss": float(out.loss),
        "cached": cached.tolist(),
        "uncached": slow.tolist(),
        "padded": shifted.tolist(),
        "ids": tokenizer("def f(x):\\r\\n\\treturn '🌍'<|endoftext|>")["input_ids"],
        "text": tokenizer.decode(tokenizer("def f(x): return '🌍' , x")["input_ids"]),
        "eos": tokenizer.eos_token_id,
        "ours": [name for name in sys.modules if name.split(".")[0] in ("supernet", "search")],
    }))
"""

HOMOGENEOUS: dict[str, Architecture] = {
    "all layers": {"layers.0.attention.qkv_format": "Q8_0"},
    "one layer dropped": {"layers.1.attention.active": 0, "layers.1.mlp.active": 0},
    "narrow": {"d_model": 64, **{f"layers.{i}.attention.kv_heads": 1 for i in range(3)}},
}
HETEROGENEOUS: dict[str, Architecture] = {
    "sizes": {
        "layers.0.attention.kv_heads": 1,
        "layers.1.mlp.width": 64,
        "layers.2.attention.heads_per_kv": 1,
    },
    "first without attention": {"layers.0.attention.active": 0, "layers.2.mlp.active": 0},
    "last without attention": {"layers.2.attention.active": 0, "layers.0.mlp.active": 0},
    "no attention": {f"layers.{i}.attention.active": 0 for i in range(3)},
    "nothing": {f"layers.{i}.{part}.active": 0 for i in range(3) for part in ("attention", "mlp")},
}


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    attention = partial(
        ElasticAttention,
        head_dim=HEAD_DIM,
        kv_heads=(1, 2),
        heads_per_kv=(1, 2),
        qkv_formats=FORMAT_NAMES,
        o_formats=FORMAT_NAMES,
        droppable=True,
    )
    mlp = partial(
        ElasticSwiGLU,
        width=(64, 128),
        gate_up_formats=FORMAT_NAMES,
        down_formats=FORMAT_NAMES,
        droppable=True,
    )
    blocks: dict[str, Any] = {"attention": attention, "mlp": mlp}
    net = Supernet(VOCAB, CONTEXT, 3, (64, 128), HEAD_DIM, 1e4, 1e-5, FORMAT_NAMES, blocks)
    with torch.no_grad():  # gains that are not 1, and an embedding that is felt
        for name, parameter in net.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    return net


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    return tokenizer.to_str()


def subnet(net: Supernet, changes: Architecture) -> Decoder:
    base = net.space.decode(net.space.with_format(net.space.largest, "Q4_0"))
    return extract(net, net.space.encode({**base, **changes}))


def load_fresh(folders: list[Path], rows: np.ndarray, scratch: Path, remote: bool) -> list[dict[str, Any]]:
    """Return what transformers says about each folder, in a process that knows nothing of us."""
    np.save(scratch / "rows.npy", rows)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(scratch / "hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    mode = "remote" if remote else "plain"
    command = [sys.executable, "-c", FRESH_PROCESS, mode, "rows.npy", *(str(folder) for folder in folders)]
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("remote", [False, True], ids=["homogeneous", "heterogeneous"])
def test_a_fresh_process_computes_our_logits(
    supernet: Supernet, tokenizer_json: str, tmp_path: Path, remote: bool
) -> None:
    from tokenizers import Tokenizer

    cases = HETEROGENEOUS if remote else HOMOGENEOUS
    decoders = [subnet(supernet, changes) for changes in cases.values()]
    target = HuggingFace("huggingface", "float32")
    folders = [target.export(decoder, tokenizer_json, tmp_path / str(i)) for i, decoder in enumerate(decoders)]
    rows = generator(0, "rows").integers(0, VOCAB, (2, 20))
    reports = load_fresh(folders, rows, tmp_path, remote)
    assert len(reports) == len(cases)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    for decoder, folder, report in zip(decoders, folders, reports, strict=True):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == [report["class"]]
        assert (report["class"] == "LlamaForCausalLM", "auto_map" in config) == (not remote, remote)
        assert (folder / "modeling_subnet.py").exists() == remote
        expected = decoder(torch.from_numpy(rows)).detach().numpy()
        error = np.linalg.norm(np.load(folder / "logits.npy") - expected) / np.linalg.norm(expected)
        assert error <= 1e-4
        assert report["wrong_keys"] == [] and report["ours"] == []
        assert report["cached"] == report["uncached"] == report["padded"]
        assert report["ids"] == tokenizer.encode("def f(x):\r\n\treturn '🌍'<|endoftext|>").ids
        assert report["text"] == "def f(x): return '🌍' , x"
        assert report["eos"] == 0


def test_heads_that_do_not_divide_the_width_need_the_modeling_file(
    supernet: Supernet, tokenizer_json: str, tmp_path: Path
) -> None:
    # Three heads of 32 on a width of 128: transformers' Llama refuses that.
    decoder = subnet(supernet, {f"layers.{i}.attention.heads_per_kv": 1 for i in range(3)})
    with torch.no_grad():
        for layer in decoder.layers:
            attention: Any = layer.attention
            attention.kv_heads = 3
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight = torch.nn.Parameter(projection.weight[[*range(64), *range(32)]])
            attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, [*range(64), *range(32)]])
    export(decoder, tokenizer_json, tmp_path / "hf")
    assert "auto_map" in json.loads((tmp_path / "hf" / "config.json").read_text())


def test_dtype_and_replacement(supernet: Supernet, tokenizer_json: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    decoder = subnet(supernet, {})
    folder = tmp_path / "hf"
    export(decoder, tokenizer_json, folder)
    export(decoder, tokenizer_json, folder, "bfloat16")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_failed_export_leaves_nothing(
    supernet: Supernet, tokenizer_json: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = subnet(supernet, {})
    with pytest.raises(UserError, match="must be one of float32"):
        HuggingFace("huggingface", "int3")
    with pytest.raises(UserError, match="damaged"):
        export(decoder, "{", tmp_path / "hf")
    other = tmp_path / "papers"
    other.mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        export(decoder, tokenizer_json, other)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("shutil.copyfile", full_disk)
    with pytest.raises(OSError, match="no space"):
        export(subnet(supernet, HETEROGENEOUS["sizes"]), tokenizer_json, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["papers"]


needs_bitsandbytes = pytest.mark.skipif(nf4.missing() is not None, reason=str(nf4.missing()))


@pytest.fixture(scope="module")
def nf4_supernet() -> Supernet:
    torch.manual_seed(1)
    formats = ("NF4", "F16")
    attention = partial(
        ElasticAttention,
        head_dim=64,
        kv_heads=(1, 2),
        heads_per_kv=(1, 2),
        qkv_formats=formats,
        o_formats=formats,
        droppable=True,
    )
    mlp = partial(ElasticSwiGLU, width=(64, 128), gate_up_formats=formats, down_formats=formats, droppable=True)
    blocks: dict[str, Any] = {"attention": attention, "mlp": mlp}
    net = Supernet(VOCAB, CONTEXT, 3, (128, 256), 64, 1e4, 1e-5, ("F16",), blocks)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter) if "norm" in name else 3)
    return net


def nf4_architecture(net: Supernet) -> Architecture:
    """Return the largest subnet with every matrix in NF4."""
    largest = net.space.decode(net.space.largest)
    return {**largest, **{k: "NF4" for k in largest if "_format" in k}}


def nf4_subnet(net: Supernet, changes: Architecture) -> Decoder:
    return extract(net, net.space.encode({**nf4_architecture(net), **changes}))


@needs_bitsandbytes
@pytest.mark.parametrize("remote", [False, True], ids=["homogeneous", "heterogeneous"])
def test_a_fresh_process_computes_our_logits_in_4_bits(
    nf4_supernet: Supernet, tokenizer_json: str, tmp_path: Path, remote: bool
) -> None:
    mixed: Architecture = {"layers.1.mlp.down_format": "F16", "layers.2.attention.o_format": "F16"}
    odd: Architecture = {"layers.0.attention.active": 0, "layers.1.mlp.width": 64, "layers.2.attention.kv_heads": 1}
    decoder = nf4_subnet(nf4_supernet, {**mixed, **(odd if remote else {})})
    folder = HuggingFaceNF4("huggingface_nf4", "float32").export(decoder, tokenizer_json, tmp_path)
    rows = generator(0, "rows").integers(0, VOCAB, (2, 20))
    (report,) = load_fresh([folder], rows, tmp_path, remote)
    assert report["class"] == ("SubnetForCausalLM" if remote else "LlamaForCausalLM")
    assert report["packed"] == sum(linear.format.name == "NF4" for linear in decoder.linears()) > 10
    assert report["wrong_keys"] == [] and report["ours"] == []
    expected = decoder(torch.from_numpy(rows)).detach().numpy()
    error = np.linalg.norm(np.load(folder / "logits.npy") - expected) / np.linalg.norm(expected)
    assert error <= 1e-5
    assert report["cached"] == report["uncached"] == report["padded"]


def test_packed_matrices_are_those_that_bitsandbytes_saves(nf4_supernet: Supernet) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    attention: Any = nf4_subnet(nf4_supernet, {}).layers[0].attention
    theirs = bitsandbytes.nn.Linear4bit(256, 256, bias=False, compress_statistics=False, quant_type="nf4")
    theirs.weight.data = attention.q_proj.weight.detach()
    saved = theirs.to("cpu").state_dict(prefix="x.")
    ours = nf4.packed("x", attention.q_proj)
    assert ours is not None and ours.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype, name


def nf4_target(**settings: Any) -> PyTorchNF4:
    return PyTorchNF4("pytorch_nf4", "cpu", "float32", 8, 4, 1, 600, None, **{"quantizer": [], **settings})


@needs_bitsandbytes
@pytest.mark.usefixtures("in_process")
def test_bitsandbytes_own_quantizer(nf4_supernet: Supernet, tokenizer_json: str, tmp_path: Path) -> None:
    from search.targets.pytorch_child import Session

    rows, target = generator(0, "rows").integers(0, VOCAB, (4, 33)), nf4_target()
    tokens = torch.from_numpy(rows)
    decoder, in_floats = nf4_subnet(nf4_supernet, {}), extract(nf4_supernet, nf4_supernet.space.largest)
    ours, _ = evaluate(decoder, tokens, 4)
    packed = target.export(decoder, tokenizer_json, tmp_path / "packed")
    # bfloat16, where the processor has it.
    assert target.evaluate(packed, rows)["loss"] == pytest.approx(ours, rel=5e-3)
    held = 2 * VOCAB * 256  # what an embedding in float32 takes beyond one in F16
    embedding_and_norms = 2 * VOCAB * 256 + 4 * 7 * 256
    weights = sum(linear.weight.numel() for linear in decoder.linears()) - VOCAB * 256
    scales = sum(4 * len(linear.weight) for linear in decoder.linears()) - 4 * VOCAB
    full, _ = evaluate(in_floats, tokens, 4)
    judge = Judge(tokens[:2], tokens, 4, torch.zeros(4, 32, dtype=torch.long), ["all"])
    path = target.export(in_floats, tokenizer_json, tmp_path)
    for kind, n_bytes, loss in (
        ("nf4", nf4_supernet.n_bytes(nf4_architecture(nf4_supernet)), ours),
        ("int8", weights + scales + embedding_and_norms, full),
    ):
        quantized, counted = target.quantized(path, kind, tmp_path / "own")
        assert counted == n_bytes
        assert target.measure(quantized)["size_mb"] * 1e6 == pytest.approx(n_bytes + held)
        assert (quantized / "tokenizer.json").read_text() == tokenizer_json
        as_saved = Session(str(quantized), "cpu", "float32").model(tokens).logits
        as_loaded = Session(str(path), "cpu", "float32", nf4.QUANTIZATIONS[kind]).model(tokens).logits
        assert torch.equal(as_saved, as_loaded)
        scores = judge.runtime_scores(target, quantized)
        assert scores["test_loss"] == pytest.approx(loss, rel=5e-3)
        assert scores["test_loss"] == target.evaluate(quantized, rows)["loss"] != scores["valid_loss"]
    with pytest.raises(UserError, match="quantized already"):
        target.quantized(packed, "int8", tmp_path / "own")


def test_a_kind_that_bitsandbytes_does_not_make_is_refused() -> None:
    assert nf4_target(quantizer=["int8", "nf4"]).quantizer == ("int8", "nf4")
    with pytest.raises(
        UserError, match=r"targets\.pytorch_nf4\.quantizer .*nf4, int8, got \['int4'\] .*pytorch_nf4\.yaml"
    ):
        nf4_target(quantizer=["int4"])


def test_what_does_not_go_into_4_bits_is_refused(
    supernet: Supernet, nf4_supernet: Supernet, tokenizer_json: str, tmp_path: Path
) -> None:
    target = HuggingFaceNF4("huggingface_nf4", "float32")
    space = nf4_supernet.space
    assert target.supports(space.decode(space.smallest)) is None
    others = supernet.space.decode(supernet.space.with_format(supernet.space.largest, "Q4_0"))
    assert "embedding.format is Q4_0" in str(target.supports(others))
    assert "qkv_format is Q4_0" in str(target.supports({**others, "embedding.format": "F16"}))
    with pytest.raises(UserError, match=r"embed_tokens is Q4_0, which a checkpoint of bitsandbytes does not hold"):
        target.export(subnet(supernet, {}), tokenizer_json, tmp_path)
