"""PyTorch as a target: what it measures is what the folder takes, and its loss is ours."""

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

from search.targets.pytorch import PyTorch
from supernet.errors import UserError
from supernet.genes import Architecture
from supernet.losses import evaluate
from supernet.model import Supernet
from supernet.randomness import generator
from supernet.subnet import Decoder, extract

VOCAB, HEAD_DIM, LAYERS = 300, 32, 3
SETTINGS: dict[str, Any] = {"prefill_tokens": 24, "decode_tokens": 8, "repeats": 2, "timeout_s": 120, "hardware": None}
TIMES = ("ttft_ms", "decode_ms", "decode_p95_ms", "ttft_wall_ms", "decode_wall_ms", "decode_wall_p95_ms", "load_ms")
# What `LlamaCpp.measure` returns, so that report and hardware model read both.
KEYS = {"built", "device", "prefill_tokens", "peak_memory_mb", "size_mb", "file_mb", "kv_bytes_per_token", *TIMES}
SHAPES: dict[str, Architecture] = {
    "a plain Llama": {},
    "layers of different sizes": {
        "layers.0.attention.active": 0,
        "layers.1.attention.kv_heads": 1,
        "layers.1.mlp.width": 32,
        "layers.2.mlp.active": 0,
    },
    "nothing but the embedding": {f"layers.{i}.{part}.active": 0 for i in range(3) for part in ("attention", "mlp")},
}
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def on(device: str, dtype: str = "float32", **changes: Any) -> PyTorch:
    return PyTorch("pytorch", device, dtype, **{**SETTINGS, **changes})


def with_vocabulary(net: Supernet) -> Supernet:
    """Give a tiny net as many embeddings as a tokenizer needs that knows every byte."""
    weight = torch.randn(VOCAB, net.embedding.weight.shape[1], generator=torch.Generator().manual_seed(0))
    net.embedding.weight, net.vocab_size = torch.nn.Parameter(weight * 0.15), VOCAB
    return net


@pytest.fixture(scope="module")
def supernet(supernet_of: Any) -> Supernet:
    return with_vocabulary(supernet_of(seed=3))


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    from supernet.tokenizer import train_tokenizer

    return train_tokenizer([Path(__file__).read_text(encoding="utf-8")], VOCAB - 3).to_str()


def subnet(net: Supernet, changes: Architecture) -> Decoder:
    """Return the largest subnet in the cheapest formats, but for `changes`."""
    space = net.space
    cheap = space.replace(space.largest, lambda gene, index: 0 if gene.kind == "format" else index)
    return extract(net, space.encode({**space.decode(cheap), **changes}))


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def shipped(
    request: pytest.FixtureRequest, supernet: Supernet, tokenizer_json: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Decoder, Path]:
    decoder = subnet(supernet, request.param)
    return decoder, on("cpu").export(decoder, tokenizer_json, tmp_path_factory.mktemp("export"))


def rows(n: int, tokens: int) -> np.ndarray:
    return generator(0, "rows").integers(0, VOCAB, (n, tokens))


@pytest.mark.parametrize("device", DEVICES)
def test_measured_is_what_the_folder_takes(shipped: tuple[Decoder, Path], device: str) -> None:
    decoder, path = shipped
    assert path.name == "pytorch_float32"
    measured = on(device).measure(path)
    assert measured.get("reason") is None and set(measured) == KEYS
    assert all(measured[key] > 0 for key in TIMES)
    assert measured["decode_ms"] <= measured["decode_p95_ms"]
    assert measured["prefill_tokens"] == SETTINGS["prefill_tokens"]
    attentions = [layer.attention for layer in decoder.layers if layer.attention is not None]
    assert measured["kv_bytes_per_token"] == sum(2 * a.kv_heads * HEAD_DIM * 4 for a in attentions)
    assert measured["size_mb"] == pytest.approx(sum(p.numel() * 4 for p in decoder.parameters()) / 1e6)
    assert measured["size_mb"] < measured["file_mb"]
    assert measured["peak_memory_mb"] >= measured["size_mb"]
    assert measured["device"]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("device", DEVICES)
def test_loss_is_ours(shipped: tuple[Decoder, Path], device: str) -> None:
    decoder, path = shipped
    tokens = rows(11, 40)  # more than are evaluated at a time
    loss, accuracy = evaluate(decoder, torch.from_numpy(tokens), 4)
    theirs = on(device).evaluate(path, tokens)
    assert theirs["loss"] == pytest.approx(loss, abs=1e-4)
    assert theirs["accuracy"] == pytest.approx(accuracy, abs=1e-2)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("device", DEVICES)
def test_text_depends_on_the_seed_alone(shipped: tuple[Decoder, Path], device: str) -> None:
    write = partial(on(device).generate, shipped[1], "def ", 12, temperature=3)
    text = write(seed=3)
    assert text and text == write(seed=3) != write(seed=4)
    likeliest = {on(device).generate(shipped[1], "", 4, seed=seed, temperature=0) for seed in (3, 9)}
    assert len(likeliest) == 1


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("device", DEVICES)
def test_the_cache_changes_nothing(shipped: tuple[Decoder, Path], tokenizer_json: str, device: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    ids = tokenizer.encode("def f(x):").ids
    n_prompt = len(ids)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(shipped[0](torch.tensor([ids]))[0, -1].argmax()))
    text = on(device).generate(shipped[1], "def f(x):", 6, seed=0, temperature=0)
    assert text == tokenizer.decode(ids[n_prompt:])


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bytes(supernet: Supernet, tokenizer_json: str, tmp_path: Path, dtype: str, device: str) -> None:
    decoder, target = subnet(supernet, {}), on(device, dtype)
    path = target.export(decoder, tokenizer_json, tmp_path)
    assert path.name == f"pytorch_{dtype}" == target.file_name
    assert target.loads(path) is None
    measured = target.measure(path)
    assert measured["size_mb"] == pytest.approx(sum(p.numel() * 2 for p in decoder.parameters()) / 1e6)
    assert measured["kv_bytes_per_token"] == LAYERS * 2 * 2 * HEAD_DIM * target.kv_bytes_per_value
    tokens = rows(4, 40)
    loss, _ = evaluate(decoder, torch.from_numpy(tokens), 4)
    assert target.evaluate(path, tokens)["loss"] == pytest.approx(loss, abs=0.05)


@pytest.mark.slow
def test_peak_memory_is_the_nets(supernet_of: Any, tokenizer_json: str, tmp_path: Path) -> None:
    """Two nets whose weights differ by some 75 MB differ in the peak by as much, not by twice that."""
    peaks, sizes = [], []
    for width in (32, 8192):
        net = with_vocabulary(supernet_of(d_model=(256,), width=(width,), kv_heads=(1,), heads_per_kv=(1,)))
        path = on("cpu").export(extract(net, net.space.largest), tokenizer_json, tmp_path / str(width))
        measured = on("cpu").measure(path)
        peaks.append(measured["peak_memory_mb"])
        sizes.append(measured["size_mb"])
    assert sizes[1] - sizes[0] > 50
    assert peaks[1] - peaks[0] == pytest.approx(sizes[1] - sizes[0], rel=0.15)


@pytest.fixture
def mixed(supernet: Supernet, tokenizer_json: str, tmp_path: Path) -> Path:
    """Return a folder that needs our modeling file."""
    return on("cpu").export(subnet(supernet, SHAPES["layers of different sizes"]), tokenizer_json, tmp_path)


def test_damaged_weights_are_a_reason(mixed: Path) -> None:
    weights = mixed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    measured = on("cpu").measure(mixed)
    assert not measured["built"] and "afetensor" in measured["reason"] and "Traceback" not in measured["reason"]
    assert measured["reason"].startswith(f"{mixed} could not be run: ")
    with pytest.raises(UserError, match="missing"):
        on("cpu").measure(mixed / "nothing")
    with pytest.raises(UserError, match="expected rows"):
        on("cpu").evaluate(mixed, rows(1, 1))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["Other"]}, "the architecture Other, expected one of Llama"),
        ({"layers": [{"heads": 2, "kv_heads": 2, "ffn": 32}] * 4}, "weights and config.json do not fit"),
        ({"hidden_size": 96}, "weights and config.json do not fit"),
    ],
)
def test_a_configuration_that_does_not_fit_is_a_reason(mixed: Path, changes: dict[str, Any], reason: str) -> None:
    assert on("cpu").loads(mixed) is None
    config = json.loads((mixed / "config.json").read_text())
    (mixed / "config.json").write_text(json.dumps({**config, **changes}))
    assert reason in str(on("cpu").loads(mixed))
    with pytest.raises(UserError, match=reason):
        on("cpu").generate(mixed, "a", 1, seed=0)


@pytest.mark.usefixtures("in_process")
def test_weights_that_are_no_numbers_are_a_reason(mixed: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(mixed / "model.safetensors")
    tensors["model.norm.weight"].fill_(torch.nan)
    save_file(tensors, mixed / "model.safetensors", metadata={"format": "pt"})
    assert "not finite" in str(on("cpu").loads(mixed))


@pytest.mark.usefixtures("in_process")
def test_code_in_the_folder_is_not_executed(mixed: Path, tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    assert (mixed / "modeling_subnet.py").exists()
    (mixed / "modeling_subnet.py").write_text(trap)
    (mixed / "custom_generate").mkdir()
    (mixed / "custom_generate" / "generate.py").write_text(trap)
    assert len(on("cpu").generate(mixed, "def ", 9, seed=0)) > 0
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("kill -ABRT $$", "PyTorch was killed by SIGABRT"),
        ("echo broken >&2; exit 3", "code 3.*broken"),
        ("echo no json", "no answer"),
        ("exec sleep 9", "more than 1 s"),
    ],
)
def test_crash_in_the_child_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, reason: str
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\n{program}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    target = on("cpu", timeout_s=1)
    assert not target.measure(tmp_path)["built"]
    with pytest.raises(UserError, match=reason):
        target.generate(tmp_path, "a", 1, seed=0)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert on("cpu").available() is None and on("auto").available() is None
    assert on("auto").settings["device"] == "cpu"
    assert "no CUDA device" in str(on("cuda").available())
    with pytest.raises(UserError, match="set device to auto or cpu"):
        on("cuda").measure(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert on("cuda").available() is None and on("auto").settings["device"] == "cuda"


def test_settings_are_what_a_cost_depends_on() -> None:
    target = on("cpu", "bfloat16", hardware="elsewhere.json")
    assert target.hardware == "elsewhere.json" and on("cpu").hardware is None
    assert target.settings == {
        "device": "cpu",
        "dtype": "bfloat16",
        **{k: v for k, v in SETTINGS.items() if k not in ("timeout_s", "hardware")},
    }
    assert json.loads(json.dumps(target.settings)) == target.settings


@pytest.mark.parametrize(
    "changes", [{"device": "tpu"}, {"dtype": "int3"}, {"repeats": 0}, {"timeout_s": -1}, {"decode_tokens": 0}]
)
def test_a_wrong_setting_names_its_key(changes: dict[str, Any]) -> None:
    settings = {"device": "cpu", "dtype": "float32", **SETTINGS, **changes}
    with pytest.raises(
        UserError, match=rf"targets\.pytorch\.{next(iter(changes))} must be .*conf/target/pytorch\.yaml"
    ):
        PyTorch("pytorch", **settings)


def test_target_is_cheap_to_import() -> None:
    code = "import sys, search.targets.pytorch; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": "."})
