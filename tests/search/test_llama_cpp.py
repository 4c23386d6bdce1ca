"""What we train is what llama.cpp runs: bytes, sizes, logits, perplexity and tokens of shipped GGUF files."""

import ast
import copy
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.targets import child
from search.targets.gguf_file import tensor_bytes
from search.targets.llama_cpp import LlamaCpp
from search.targets.packing import KV_VALUES_KEY, PACKERS
from search.targets.remote import export_folder
from supernet.blocks.attention import ElasticAttention
from supernet.blocks.swiglu import ElasticSwiGLU
from supernet.elastic import emulate
from supernet.errors import UserError
from supernet.formats import IQ4_NL, format_named
from supernet.genes import Architecture
from supernet.hardware import read_model
from supernet.model import Supernet
from supernet.randomness import generator
from supernet.run import TrainedSupernet
from supernet.subnet import Decoder, extract

VOCAB, HEAD_DIM, CONTEXT = 300, 32, 128
QUICK_SETTINGS: dict[str, Any] = {
    "n_threads": 1,
    "kv_cache": "F16",
    "prefill_tokens": 4,
    "decode_tokens": 4,
    "repeats": 1,
    "timeout_s": 1,
    "hardware": None,
    "quantizer": (),
}
SETTINGS = QUICK_SETTINGS | {"prefill_tokens": 64, "decode_tokens": 16, "repeats": 2, "timeout_s": 60}
QUICK = LlamaCpp("llama_cpp", **QUICK_SETTINGS)
Ship = Callable[[Decoder], Path]
FORMAT_NAMES = ("Q4_0", "Q5_0", "Q8_0", "F16", "F32")
TEXTS = [
    "def main(argv):\n\treturn {'a': 1_000, \"b\": [x**2 for x in range(10)]}\n",
    "wide 🌍🚀 é ñ 你好 العربية — “quotes” it's they'll",
    "line one\r\nline two\r\n\r\n   indented\t\ttabs  \n\n\n",
    "<|endoftext|>after<|endoftext|>\n",
    " a\u00a0b\u200b\u3000c 12345 0x1F !!!... \\n ",
]


def build(names: tuple[str, ...], widths: tuple[int, ...], head_dim: int) -> Supernet:
    """Return a supernet of three layers, of up to four heads, whose other rows have the `widths`."""
    torch.manual_seed(0)
    formats: dict[str, Any] = {"qkv_formats": names, "o_formats": names, "droppable": True}
    attention = partial(ElasticAttention, head_dim=head_dim, kv_heads=(1, 2), heads_per_kv=(1, 2), **formats)
    formats = {"gate_up_formats": names, "down_formats": names, "droppable": True}
    mlp = partial(ElasticSwiGLU, width=widths, **formats)
    blocks: dict[str, Any] = {"attention": attention, "mlp": mlp}
    net = Supernet(VOCAB, CONTEXT, 3, widths, head_dim, 1e4, 1e-5, names, blocks)
    with torch.no_grad():  # confident logits, and gains that are not 1
        for name, parameter in net.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
        nn.init.normal_(net.embedding.weight, std=1.7 / math.sqrt(widths[-1]))
    return net


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return build(FORMAT_NAMES, (64, 128), HEAD_DIM)


@pytest.fixture(scope="module")
def wide() -> Supernet:
    """Rows of 256, as the K-formats need them."""
    names = PACKERS.keys() - {IQ4_NL.name}  # as dense as Q4_0: a gene has one of them
    return build(tuple(sorted(names, key=lambda name: format_named(name).bits)), (256,), 64)


@pytest.fixture(scope="module")
def uneven() -> Supernet:
    return build((IQ4_NL.name, *FORMAT_NAMES[1:]), (64, 128), HEAD_DIM)


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 3,  # three embeddings stay without a token
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, Path(gguf.__file__).read_text()], trainer)
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def target() -> LlamaCpp:
    if importlib.util.find_spec("llama_cpp") is None:  # not importorskip: it must never be loaded here
        pytest.skip("llama-cpp-python is not installed")
    return LlamaCpp("llama_cpp", **SETTINGS)


@pytest.fixture
def ship(tokenizer_json: str, tmp_path: Path) -> Ship:
    return lambda decoder: QUICK.export(decoder, tokenizer_json, tmp_path)


def subnet(net: Supernet, changes: Architecture, format_name: str = "F16") -> Decoder:
    """Return the largest subnet in one format, but for `changes`."""
    base = net.space.decode(net.space.with_format(net.space.largest, format_name))
    return extract(net, net.space.encode({**base, **changes}))


def rows(seed: int, n: int, tokens: int) -> np.ndarray:
    return generator(seed, "rows").integers(0, VOCAB, (n, tokens))


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_shipped_bytes_decode_to_the_trained_weights(supernet: Supernet, ship: Ship, name: str) -> None:
    decoder = subnet(supernet, {"layers.1.attention.heads_per_kv": 1}, name)
    tensors = {t.name: t for t in gguf.GGUFReader(ship(decoder)).tensors}
    names = {f"attn_{part}": f"attention.{part}_proj" for part in "qkv"} | {"attn_output": "attention.o_proj"}
    names |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    pairs = [("token_embd", "embedding")]
    pairs += [(f"blk.{i}.{theirs}", f"layers.{i}.{ours}") for i in range(3) for theirs, ours in names.items()]
    for theirs, ours in pairs:
        tensor = tensors[f"{theirs}.weight"]
        assert tensor.tensor_type.name == name
        shipped = gguf.dequantize(tensor.data, tensor.tensor_type)
        if theirs.endswith(("attn_q", "attn_k")):  # rows back in our order
            neighbors = shipped.reshape(-1, HEAD_DIM // 2, 2, shipped.shape[-1])
            shipped = neighbors.swapaxes(1, 2).reshape(shipped.shape)
        expected = format_named(name).quantize(decoder.get_parameter(f"{ours}.weight").detach())
        assert np.array_equal(shipped, expected.numpy())
    assert len(pairs) + 2 * 3 + 1 == len(tensors)
    assert all(t.tensor_type.name == "F32" for t in tensors.values() if "norm" in t.name)


def test_file_holds_exactly_what_the_supernet_counts(supernet: Supernet, ship: Ship) -> None:
    space, rng = supernet.space, generator(0, "sizes")
    genomes = [space.sample(rng) for _ in range(20)]
    genomes += [space.encode({**space.decode(space.largest), **changes}) for changes in ARCHITECTURES.values()]
    for genome in genomes:
        reader = gguf.GGUFReader(ship(extract(supernet, genome)))
        architecture = space.decode(genome)
        assert sum(int(t.n_bytes) for t in reader.tensors) == supernet.n_bytes(architecture)
        found: Counter[str] = Counter({"kv_values": reader.fields[KV_VALUES_KEY].contents()})
        layers = {t.name.split(".")[1] for t in reader.tensors if t.name.startswith("blk.")}
        last = f"blk.{len(layers) - 1}.ffn_"
        for tensor in reader.tensors:
            name, size = tensor.tensor_type.name, int(tensor.n_elements)
            if "norm" in tensor.name:
                found["norm.weights"] += size
                continue
            for part in ("", "once.") if tensor.name.startswith((last, "token_embd")) else ("",):
                found[f"{part}{name}.weights"] += size
                found[f"{part}{name}.rows"] += int(tensor.shape[1])
            found["attention"] += tensor.name.endswith("attn_q.weight")
            found["mlp"] += tensor.name.endswith("ffn_gate.weight")
            found["heads"] += int(tensor.shape[1]) // HEAD_DIM if tensor.name.endswith("attn_q.weight") else 0
        counted = supernet.inventory(architecture)
        assert {name: counted.get(name, 0.0) for name in found} == found
        kinds = (".weights", ".rows")
        assert not [k for k, v in counted.items() if v and k.endswith(kinds) and "norm" not in k and k not in found]


def off(*parts: str) -> Architecture:
    return {f"layers.{part}.active": 0 for part in parts}


ARCHITECTURES: dict[str, Architecture] = {
    "homogeneous": {},
    "narrow": {"d_model": 64},
    "attention-free first": off("0.attention"),
    "attention-free middle": off("1.attention"),
    "attention-free last": off("2.attention"),
    "FFN-free first": off("0.mlp"),
    "FFN-free middle": off("1.mlp"),
    "FFN-free last": off("2.mlp"),
    "first dropped": off("0.attention", "0.mlp"),
    "last dropped": off("2.attention", "2.mlp"),
    "first dropped, then attention-free": off("0.attention", "0.mlp", "1.attention"),
    "no attention": off("0.attention", "1.attention", "2.attention"),
    "nothing but the embedding": off(*(f"{i}.{part}" for i in range(3) for part in ("attention", "mlp"))),
    "different sizes": {
        "layers.0.attention.kv_heads": 1,
        "layers.1.attention.heads_per_kv": 1,
        "layers.1.mlp.width": 64,
        "layers.2.attention.kv_heads": 1,
        "layers.2.attention.heads_per_kv": 1,
    },
}


def logit_error(target: LlamaCpp, path: Path, decoder: Decoder) -> float:
    tokens = rows(1, 1, 40)
    expected = decoder(torch.from_numpy(tokens))[0].detach().numpy()
    return float(np.linalg.norm(target.logits(path, tokens[0]) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_logits_are_pytorchs(supernet: Supernet, target: LlamaCpp, ship: Ship, changes: Architecture) -> None:
    decoder = subnet(supernet, changes).freeze_formats()
    for linear in decoder.linears():
        linear.store_as(format_named("F16"))
    assert logit_error(target, ship(decoder), decoder) <= 2e-3


def test_a_frozen_subnet_ships_in_f32(supernet: Supernet, target: LlamaCpp, ship: Ship) -> None:
    decoder = subnet(supernet, off("1.mlp"), "Q4_0").freeze_formats()
    assert logit_error(target, ship(decoder), decoder) <= 2e-3


def drawn(decoder: Decoder) -> Tensor:
    """Return tokens (16, 65) drawn from the net itself: on random ones a loss would hardly depend on the weights."""
    decoder, tokens = copy.deepcopy(decoder).freeze_formats(), torch.from_numpy(rows(3, 16, 1))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(64):
            chances = decoder(tokens)[:, -1].softmax(-1)
            tokens = torch.cat((tokens, torch.multinomial(chances, 1, generator=rng)), 1)
    return tokens


MIXED: Architecture = {
    "embedding.format": "Q8_0",
    "layers.0.attention.qkv_format": "Q5_0",
    "layers.1.attention.o_format": "Q8_0",
    "layers.1.mlp.gate_up_format": "Q5_0",
    "layers.2.mlp.down_format": "Q8_0",
    **off("1.attention", "2.mlp"),
}
MIXED_K: Architecture = {
    "embedding.format": "Q6_K",
    "layers.0.attention.qkv_format": "Q2_K",
    "layers.0.mlp.down_format": "Q2_K",
    "layers.1.attention.qkv_format": "Q8_0",
    "layers.1.mlp.gate_up_format": "Q2_K",
    "layers.1.mlp.down_format": "Q4_0",
    "layers.2.attention.o_format": "Q6_K",
}


@pytest.mark.parametrize(
    ("net", "changes", "others"),
    [("supernet", MIXED, "Q4_0"), ("uneven", MIXED, "IQ4_NL"), ("wide", MIXED_K, "Q3_K")],
)
def test_perplexity_of_mixed_formats_is_ours(
    request: pytest.FixtureRequest, target: LlamaCpp, ship: Ship, net: str, changes: Architecture, others: str
) -> None:
    decoder = subnet(request.getfixturevalue(net), changes, others)
    tokens = drawn(decoder)
    emulate(decoder, kv_format=target.kv_cache)
    with torch.no_grad():
        logits = decoder(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    accuracy = (logits.argmax(-1) == tokens[:, 1:]).float().mean().item()
    theirs = target.evaluate(ship(decoder), tokens.numpy())
    assert math.exp(theirs["loss"]) == pytest.approx(math.exp(loss), rel=0.002)
    assert theirs["accuracy"] == pytest.approx(accuracy, abs=0.02)
    assert loss < math.log(VOCAB) - 0.5


def test_many_tokens_are_scored_in_several_calls(
    monkeypatch: pytest.MonkeyPatch, supernet: Supernet, target: LlamaCpp, ship: Ship
) -> None:
    path, tokens = ship(subnet(supernet, MIXED)), rows(4, 5, 17)
    losses, hits = target.token_scores(path, tokens)
    assert losses.shape == hits.shape == (5, 16) and hits.dtype == bool
    assert target.evaluate(path, tokens) == {"loss": pytest.approx(losses.mean()), "accuracy": hits.mean()}
    monkeypatch.setattr(child, "SCORED_TOKENS", 40)
    again = target.token_scores(path, tokens)
    assert np.array_equal(losses, again[0]) and np.array_equal(hits, again[1])


def test_llama_cpps_own_quantizer(wide: Supernet, target: LlamaCpp, ship: Ship, tmp_path: Path) -> None:
    decoder = subnet(wide, off("1.attention", "2.mlp"))  # a stand-in has its format already
    path, tokens = ship(decoder), drawn(decoder).numpy()
    losses, sizes = [target.evaluate(path, tokens)["loss"]], [tensor_bytes(path)]
    for kind, expected in (
        ("Q8_0", {"Q8_0"}),
        ("Q4_K_M", {"Q4_K", "Q6_K"}),
        ("Q2_K", {"Q2_K", "Q3_K", "Q6_K"}),
        ("Q2_K pure", {"Q2_K"}),
    ):
        quantized, n_bytes = target.quantized(path, kind, tmp_path / "own")
        tensors = [t for t in gguf.GGUFReader(quantized).tensors if not t.name.startswith("blk.2.ffn")]
        assert {t.tensor_type.name for t in tensors} == expected | {"F32"}
        losses.append(target.evaluate(quantized, tokens)["loss"])
        sizes.append(n_bytes)
        assert target.measure(quantized)["size_mb"] == n_bytes / 1e6
    assert losses[1] == pytest.approx(losses[0], abs=0.01) and losses[2] == pytest.approx(losses[0], abs=0.05)
    assert losses[2] < losses[3] < losses[4] < math.log(VOCAB)
    assert sizes == sorted(set(sizes), reverse=True)


def test_what_llama_cpp_does_not_quantize(wide: Supernet, target: LlamaCpp, ship: Ship, tmp_path: Path) -> None:
    path = ship(subnet(wide, {}))
    with pytest.raises(UserError, match=r"Q2_K_S: .*imatrix"):
        target.quantized(path, "Q2_K_S", tmp_path / "own")
    path = ship(subnet(wide, {}, "Q4_0"))
    with pytest.raises(UserError, match=r"token_embd\.weight is in Q4_0"):
        target.quantized(path, "Q8_0", tmp_path / "own")
    assert not list((tmp_path / "own").iterdir())
    path.write_bytes(b"GGUF")
    with pytest.raises(UserError, match="no GGUF file"):
        tensor_bytes(path)


def test_tokenizer_inside_gives_the_same_ids(
    supernet: Supernet, tokenizer_json: str, target: LlamaCpp, ship: Ship
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    texts = [*TEXTS, "\r\n".join(lines[:60]), *lines[60:90]]
    assert target.tokenize(ship(subnet(supernet, {})), texts) == [tokenizer.encode(text).ids for text in texts]


def test_measure_and_generate(supernet: Supernet, target: LlamaCpp, ship: Ship) -> None:
    changes = off("1.attention")
    path = ship(subnet(supernet, changes))
    measured = target.measure(path)
    assert measured["built"] and 0 < measured["decode_ms"] <= measured["decode_p95_ms"]
    largest = supernet.space.with_format(supernet.space.largest, "F16")
    architecture = {**supernet.space.decode(largest), **changes}
    assert measured["size_mb"] == supernet.n_bytes(architecture) / 1e6
    assert measured["size_mb"] < measured["file_mb"] == path.stat().st_size / 1e6
    assert measured["peak_memory_mb"] > 0
    assert measured["kv_bytes_per_token"] == 2 * (2 * 2 * HEAD_DIM) * 2  # F16, k and v, two heads, two layers
    text = target.generate(path, "def ", 12, seed=3, temperature=3)
    assert text == target.generate(path, "def ", 12, seed=3, temperature=3)
    assert text != target.generate(path, "def ", 12, seed=4, temperature=3)
    assert len({target.generate(path, "", 4, seed=seed, temperature=0) for seed in (3, 9)}) == 1


def test_an_8_bit_key_value_cache(supernet: Supernet, target: LlamaCpp, ship: Ship) -> None:
    eight_bit = LlamaCpp("eight bit", **{**SETTINGS, "kv_cache": "Q8_0"})
    decoder = subnet(supernet, off("1.attention"))
    path = ship(decoder)
    assert eight_bit.kv_bytes_per_value == 34 / 32 and target.kv_bytes_per_value == 2
    assert eight_bit.measure(path)["kv_bytes_per_token"] == 34 / 32 * (2 * 2 * HEAD_DIM) * 2
    plain = logit_error(eight_bit, path, decoder)
    emulate(decoder, eight_bit.rounds_activations, eight_bit.kv_format)
    assert 2e-3 < plain < 3e-2  # it rounds, and not much
    assert logit_error(eight_bit, path, decoder) < 1e-3  # the emulation rounds as much
    assert target.settings != eight_bit.settings and "timeout_s" not in target.settings


def test_loading_is_tried(supernet: Supernet, target: LlamaCpp, ship: Ship) -> None:
    path = ship(subnet(supernet, {}))
    assert target.loads(path) is None
    path.write_bytes(path.read_bytes()[:-2000])
    assert "could not load" in str(target.loads(path))


def test_a_folder_of_probes_measures_itself(
    supernet: Supernet, tokenizer_json: str, target: LlamaCpp, tmp_path: Path
) -> None:
    folder, short = tmp_path / "probes", LlamaCpp("phone", **{**SETTINGS, "prefill_tokens": 8, "decode_tokens": 4})
    export_folder(TrainedSupernet(tmp_path, supernet, {}, {}, tokenizer_json), short, folder, 6)
    plan = json.loads((folder / "probes.json").read_text())
    (folder / plan["probes"][2]["file"]).write_bytes(b"GGUF")
    with pytest.raises(UserError, match="not empty"):
        export_folder(TrainedSupernet(tmp_path, supernet, {}, {}, tokenizer_json), short, folder, 6)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")

    def run_there() -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [sys.executable, "-I", "measure.py"]  # isolated: nothing of ours on the path
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)

    assert "6 of 6" in run_there().stdout
    whole = json.loads((elsewhere / "hardware.json").read_text())
    entry = whole["targets"]["phone"]
    assert "could not load" in entry["probes"][2]["reason"] and entry["device"]
    model = read_model(elsewhere / "hardware.json")
    architecture = supernet.space.decode(supernet.space.largest)
    assert model.settings == short.settings and len(model.probes) == 6
    assert model.predict(supernet.inventory(architecture))["decode_ms"] > 0
    # Killed after two probes, it goes on where it was; probes of another folder are refused.
    (elsewhere / "hardware.json").write_text(json.dumps({**whole, "targets": {"phone": cut(entry, 2)}}))
    with pytest.raises(UserError, match="2 of 6 probes"):
        read_model(elsewhere / "hardware.json")
    printed = run_there().stdout
    assert "3 of 6" in printed and "2 of 6" not in printed
    again = json.loads((elsewhere / "hardware.json").read_text())["targets"]["phone"]
    assert again["probes"][:2] == entry["probes"][:2] and len(again["probes"]) == 6
    (elsewhere / "hardware.json").write_text(json.dumps({**whole, "targets": {"phone": {**entry, "settings": {}}}}))
    assert "holds other probes" in run_there().stderr


def cut(entry: dict[str, Any], n: int) -> dict[str, Any]:
    return {**entry, "probes": entry["probes"][:n]}


def test_what_runs_elsewhere_needs_nothing_of_ours() -> None:
    from search.targets.remote import CHILD

    named = [node for node in ast.walk(ast.parse(CHILD.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in named}
    top = {str(module).split(".")[0] for module in modules}
    assert top - set(sys.stdlib_module_names) == {"llama_cpp", "numpy"}


def test_damaged_file_is_a_reason_not_a_crash(supernet: Supernet, target: LlamaCpp, ship: Ship) -> None:
    path = ship(subnet(supernet, {}))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    measured = target.measure(path)
    assert not measured["built"] and "could not load" in measured["reason"]
    assert "Traceback" not in measured["reason"]
    with pytest.raises(UserError, match="could not load"):
        target.evaluate(path, rows(0, 1, 9))
    with pytest.raises(UserError, match="missing"):
        target.measure(path.with_name("other.gguf"))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("kill -ABRT $$", "killed by SIGABRT"),
        ("kill -ILL $$", "killed by SIGILL.*compile it here"),
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
    monkeypatch.setattr(LlamaCpp, "available", lambda self: None)
    path = tmp_path / "model.gguf"
    path.touch()
    measured = QUICK.measure(path)
    assert not measured["built"] and "could not be run" in measured["reason"]
    with pytest.raises(UserError, match=reason):
        QUICK.generate(path, "a", 1, seed=0)


def test_missing_llama_cpp_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install -e '.[gguf]'" in str(QUICK.available())
    with pytest.raises(UserError, match="pip install"):
        QUICK.measure(tmp_path / "model.gguf")


def test_what_cannot_ship_is_refused(supernet: Supernet, tokenizer_json: str, tmp_path: Path) -> None:
    for key, value in (("repeats", 0), ("kv_cache", "Q3_0"), ("quantizer", ["Q9_9"]), ("quantizer", "Q4_K_M")):
        with pytest.raises(UserError, match=rf"targets\.llama_cpp\.{key} .*conf/target/llama_cpp.yaml"):
            LlamaCpp("llama_cpp", **{**QUICK_SETTINGS, key: value})
    assert QUICK.supports(supernet.space.decode(supernet.space.largest)) is None
    assert "Q9_9" in str(QUICK.supports({"embedding.format": "Q9_9"}))
    decoder = subnet(supernet, {})
    spaced = json.loads(tokenizer_json)
    spaced["pre_tokenizer"]["add_prefix_space"] = True
    for bad in ("{", json.dumps(spaced)):
        with pytest.raises(UserError, match="tokenizer"):
            QUICK.export(decoder, bad, tmp_path)
    with torch.no_grad():
        decoder.embedding.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="token_embd"):
        QUICK.export(decoder, tokenizer_json, tmp_path)
    assert not list(tmp_path.iterdir())


def test_target_is_cheap_to_import() -> None:
    heavy = "{'torch', 'llama_cpp', 'gguf', 'transformers'} & set(sys.modules)"
    code = f"import sys, search.targets.llama_cpp, search.targets.huggingface; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": "."})
