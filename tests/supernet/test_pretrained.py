"""A pretrained Llama becomes the largest subnet: the same logits, and every file that cannot be taken is refused."""

import json
import re
import shutil
import struct
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from search.targets.huggingface import export
from supernet.errors import UserError
from supernet.initial import completed, initial_supernet, origin
from supernet.ordering import order_by_importance
from supernet.pretrained.fill import filled, padding
from supernet.pretrained.load import load_checkpoint, open_checkpoint
from supernet.run import build_supernet
from supernet.subnet import extract, extract_architecture
from supernet.tokenizer import train_tokenizer
from tests.supernet.llamas import LLAMA3, SHAPE, save_llama

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CASES = {
    "untied": dict(),
    "tied": dict(tie_word_embeddings=True),
    "all heads alike": dict(num_key_value_heads=4),
    "one key-value head": dict(num_key_value_heads=1),
    "larger heads": dict(head_dim=48),
    "smaller heads": dict(head_dim=8, num_key_value_heads=4),
    "llama3": dict(rope_parameters={**LLAMA3, "rope_theta": 5e5}, tie_word_embeddings=True),
    "another theta and eps": dict(rope_parameters={"rope_type": "default", "rope_theta": 1e3}, rms_norm_eps=1e-3),
    "hidden channels that are padded": dict(intermediate_size=172),
    "heads that are padded": dict(head_dim=8, num_attention_heads=2, num_key_value_heads=2),
    "a stream that is padded": dict(hidden_size=48, rms_norm_eps=1e-2),
    "heads in groups that are padded": dict(head_dim=4, num_attention_heads=4, num_key_value_heads=2),
}
FORMATS = ["Q2_K", "Q4_0", "Q8_0", "F16"]
MODEL = {
    "_target_": "supernet.model.Supernet",
    "_partial_": True,
    "embedding_formats": FORMATS,
    "output_formats": FORMATS,
    "blocks": {
        "attention": {
            "_target_": "supernet.blocks.attention.ElasticAttention",
            "_partial_": True,
            "qkv_formats": FORMATS,
            "o_formats": FORMATS,
        },
        "mlp": {
            "_target_": "supernet.blocks.swiglu.ElasticSwiGLU",
            "_partial_": True,
            "width": [0.5, 1.0],
            "gate_up_formats": FORMATS,
            "down_formats": FORMATS,
        },
    },
}


def imported(path, **changes):
    checkpoint = open_checkpoint(Path(path))
    model = filled({**MODEL, **changes}, checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = build_supernet(model, checkpoint.llama.vocab_size)
    load_checkpoint(supernet, checkpoint)
    return supernet


def whole(supernet):
    """Return the largest subnet in full precision."""
    return extract_architecture(supernet, supernet.space.full_precision(supernet.space.largest))


def relative_error(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(99, (2, 100), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return a folder that no test changes."""
    folder = tmp_path_factory.mktemp("plain") / "llama"
    save_llama(folder)
    return folder


@pytest.fixture
def copy(plain, tmp_path):
    """Return a copy of it that a test may damage."""
    return Path(shutil.copytree(plain, tmp_path / "copy"))


@torch.no_grad()
@pytest.mark.parametrize("changes", CASES.values(), ids=list(CASES))
def test_the_largest_subnet_computes_what_transformers_does(tmp_path, tokens, changes):
    model = save_llama(tmp_path / "llama", **changes)
    wanted = model(tokens).logits
    for d_model in (None, [0.5, 1.0]):
        supernet = imported(tmp_path / "llama", d_model=d_model)
        assert relative_error(whole(supernet)(tokens), wanted) <= 1e-5
        assert ("d_model" in order_by_importance(supernet, tokens)) == bool(d_model)
        assert relative_error(whole(supernet)(tokens), wanted) <= 1e-5
        assert relative_error(extract(supernet, supernet.space.largest)(tokens), wanted) <= 1e-2  # F16


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_of_half_precision(tmp_path, tokens, dtype):
    model = save_llama(tmp_path / "llama", dtype=dtype, shards="50KB")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 2
    supernet = imported(tmp_path / "llama")
    assert relative_error(whole(supernet)(tokens), model(tokens).logits) <= 1e-5
    assert supernet.embedding.weight.dtype == torch.float32
    order_by_importance(supernet, tokens)
    assert relative_error(whole(supernet)(tokens), model(tokens).logits) <= 1e-5


def test_what_a_checkpoint_holds_is_not_drawn(tmp_path):
    save_llama(tmp_path / "llama", head_dim=32, intermediate_size=172, shards="50KB")
    scales = {"scales": {"Q2_K": "mse", "Q4_0": "learned"}}
    drawn = imported(tmp_path / "llama", **scales)
    model = completed({**MODEL, **scales, "init": str(tmp_path / "llama")})
    before = torch.random.get_rng_state()
    loaded = initial_supernet(model, SimpleNamespace(vocab_size=90), 0, torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights, wanted = loaded.state_dict(), drawn.state_dict()
    assert weights.keys() == wanted.keys() and any("log_factors" in name for name in wanted)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@torch.no_grad()
def test_the_spelling_of_transformers_4(tmp_path, tokens):
    model = save_llama(tmp_path / "llama", rope_parameters={**LLAMA3, "rope_theta": 5e5})

    def older(config, **rope):
        del config["rope_parameters"]
        config.update(rope)

    for rope in (
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {
            "rope_theta": 5e5,
            "rope_scaling": {**{k: v for k, v in LLAMA3.items() if k != "rope_type"}, "type": "llama3"},
        },
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "rope_scaling": LLAMA3, "rope_theta": 5e5},
    ):
        folder = Path(shutil.copytree(tmp_path / "llama", tmp_path / "older", dirs_exist_ok=True))
        edit(folder, lambda config, rope=rope: older(config, **rope))
        assert relative_error(whole(imported(folder))(tokens), model(tokens).logits) <= 1e-5
    edit(folder, lambda config: (config.clear(), config.update(SHAPE | {"model_type": "llama"})))
    llama = open_checkpoint(folder).llama  # what is left out is what transformers takes then
    assert (llama.rope.theta, llama.rope.scaling, llama.norm_eps, llama.head_dim) == (1e4, None, 1e-6, 16)


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, "float32"),
        ({"tie_word_embeddings": True, "intermediate_size": 172}, "float32"),
        ({"head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 2}, "bfloat16"),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, "float16"),
    ],
)
def test_what_was_imported_is_exported_bit_for_bit(tmp_path, changes, dtype):
    save_llama(tmp_path / "llama", dtype=getattr(torch, dtype), vocab_size=300, **changes)
    tokenizer = train_tokenizer(["a b c"], 257).to_str()  # fewer tokens than embeddings
    export(whole(imported(tmp_path / "llama")), tokenizer, tmp_path / "hf", dtype)
    before, after = (
        load_file(tmp_path / "llama" / "model.safetensors"),
        load_file(tmp_path / "hf" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name, weight in before.items():
        cut = after[name][tuple(slice(size) for size in weight.shape)]
        assert cut.dtype == weight.dtype == getattr(torch, dtype) and torch.equal(cut, weight), name
        rest = after[name].clone()
        rest[tuple(slice(size) for size in weight.shape)] = 0
        assert not rest.any()
    theirs, ours = open_checkpoint(tmp_path / "llama").llama, open_checkpoint(tmp_path / "hf").llama
    sizes = padding(filled(MODEL, open_checkpoint(tmp_path / "llama")), open_checkpoint(tmp_path / "llama"))
    assert (theirs == ours) == (not sizes)


def test_what_is_null_comes_from_the_checkpoint(tmp_path, plain):
    save_llama(tmp_path / "odd", intermediate_size=172, tie_word_embeddings=True)
    settings = completed({**MODEL, "init": str(tmp_path / "odd")})
    assert {k: settings[k] for k in ("n_layers", "d_model", "head_dim", "rope_theta", "norm_eps", "tied")} == {
        "n_layers": 2,
        "d_model": [64],
        "head_dim": 16,
        "rope_theta": 1e4,
        "norm_eps": 1e-6,
        "tied": True,
    }
    blocks = settings["blocks"]
    assert (settings["context_length"], settings["rope_scaling"], settings["init"]) == (
        128,
        None,
        str(tmp_path / "odd"),
    )
    assert (blocks["attention"]["kv_heads"], blocks["attention"]["heads_per_kv"]) == ([2], [2])
    assert blocks["mlp"]["width"] == [96, 192]  # of 172: groups of 32 need 192
    assert (blocks["attention"]["droppable"], blocks["mlp"]["droppable"]) == (False, True)  # heads of 16 channels
    assert settings["embedding_formats"] == blocks["mlp"]["down_formats"] == ["Q4_0", "Q8_0", "F16"]  # no row of 256
    assert origin(settings)["pretrained"] == {
        "path": str(tmp_path / "odd"),
        "kind": "LlamaForCausalLM",
        "padded": {"model.blocks.mlp.width": [172, 192]},
    }
    assert completed(settings) == settings and MODEL["blocks"]["mlp"]["width"] == [0.5, 1.0]
    supernet = build_supernet(settings, 99)
    assert supernet.space.to_json() == imported(tmp_path / "odd").space.to_json()

    save_llama(tmp_path / "narrow", hidden_size=48, head_dim=16, rms_norm_eps=1e-3)
    narrow = completed({**MODEL, "init": str(tmp_path / "narrow"), "d_model": [0.5, 1.0]})
    assert (narrow["d_model"], narrow["norm_eps"]) == ([32, 64], 1e-3 * 48 / 64)
    assert origin(narrow)["pretrained"]["padded"] == {"model.d_model": [48, 64]}
    assert completed(narrow) == narrow

    save_llama(tmp_path / "wide", hidden_size=96, intermediate_size=512, num_key_value_heads=1, num_attention_heads=3)
    blocks = {key: dict(block) for key, block in MODEL["blocks"].items()}
    blocks["mlp"]["width"], blocks["attention"]["heads_per_kv"] = [0.2, 0.3, 0.75, 1.0], [0.4, 1.0]
    blocks["attention"]["kv_heads"] = [0.1, 1.0]
    settings = {**MODEL, "blocks": blocks, "context_length": 64, "d_model": [0.5, 1.0]}
    settings = filled(settings, open_checkpoint(tmp_path / "wide"))
    blocks = settings["blocks"]
    assert settings["d_model"] == [64, 96]  # groups of 32: not 48
    assert blocks["mlp"]["width"] == [256, 512] and blocks["mlp"]["down_formats"] == FORMATS
    assert (blocks["attention"]["heads_per_kv"], blocks["attention"]["kv_heads"]) == ([1, 3], [1])
    blocks["mlp"]["down_formats"] = ["F16"]
    assert not padding({**settings, "blocks": blocks}, open_checkpoint(tmp_path / "wide"))


def test_settings_of_another_net_are_refused(plain):
    checkpoint = open_checkpoint(plain)
    for changes, message in (
        ({"n_layers": 3}, "model.n_layers is 3, but .* has 2; null takes that"),
        ({"tied": True}, "model.tied is True"),
        ({"d_model": [32]}, r"model.d_model: the last choice must be the checkpoint's, 64 \(or 1.0\), got \[32\]"),
        ({"d_model": [0.5]}, "model.d_model: the last choice"),
        ({"d_model": []}, "model.d_model: the last choice"),
    ):
        with pytest.raises(UserError, match=message):
            filled({**MODEL, **changes}, checkpoint)
    with pytest.raises(UserError, match="must hold attention and mlp"):
        completed({"init": str(plain), "blocks": {}})
    other = imported(plain)
    other.layers = other.layers[:1]
    with pytest.raises(UserError, match="differ in shape"):
        load_checkpoint(other, checkpoint)


CONFIGS = {
    "model_type is 'mistral'; only 'llama'": {"model_type": "mistral"},
    "architecture is ['MistralForCausalLM']": {"architectures": ["MistralForCausalLM"]},
    "num_local_experts is 8; mixtures of experts": {"num_local_experts": 8},
    "auto_map names code": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    "quantization_config says": {"quantization_config": {"quant_method": "gptq"}},
    "hidden_act is 'gelu'": {"hidden_act": "gelu"},
    "attention_bias is True": {"attention_bias": True},
    "mlp_bias is True": {"mlp_bias": True},
    "the type of rope is 'yarn'; known are": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    "the type of rope is 'linear'": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "says rope_theta twice: 10000.0 and 5.0": {"rope_theta": 5.0},
    "rope must hold factor": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
    "rope_scaling must be an object": {"rope_scaling": 2.0},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "hidden_size must be a whole number": {"hidden_size": "64"},
    "num_hidden_layers must be a whole number above 0, got None": {"num_hidden_layers": None},
    "rms_norm_eps must be a number": {"rms_norm_eps": -1},
    "3 key-value heads do not divide 4": {"num_key_value_heads": 3},
    "heads of 15 channels": {"head_dim": 15},
    "q_proj.weight is (64, 64), but config.json asks for (128, 64)": {"head_dim": 32},
    "lacks the tensor model.layers.2.input_layernorm.weight": {"num_hidden_layers": 3},
    "holds model.layers.1.input_layernorm.weight, which": {"num_hidden_layers": 1},
    "embed_tokens.weight is (99, 64), but": {"vocab_size": 98},
}


@pytest.mark.parametrize(("message", "changes"), CONFIGS.items(), ids=list(CONFIGS))
def test_configurations_that_are_refused(copy, message, changes):
    edit(copy, lambda config: config.update(changes))
    with pytest.raises(UserError) as refused:
        open_checkpoint(copy)
    assert message in str(refused.value) and str(copy) in str(refused.value) and "\n" not in str(refused.value)


EXPERT = "model.layers.0.mlp.experts.0.up_proj.weight"
WEIGHTS = {
    "q_proj.bias; biases are not": lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
    "mixtures of experts": lambda w: w.update({EXPERT: torch.zeros(2)}),
    "holds model.extra.weight, which": lambda w: w.update({"model.extra.weight": torch.zeros(2)}),
    "lacks the tensor model.norm.weight": lambda w: w.pop("model.norm.weight"),
    "lacks the tensor lm_head.weight": lambda w: w.pop("lm_head.weight"),
    "norm.weight is stored as I8; known are": lambda w: w.update({"model.norm.weight": torch.ones(64).to(torch.int8)}),
    "norm.weight is (32,), but": lambda w: w.update({"model.norm.weight": torch.ones(32)}),
}


@pytest.mark.parametrize(("message", "change"), WEIGHTS.items(), ids=list(WEIGHTS))
def test_weights_that_are_refused(copy, message, change):
    edit_weights(copy, change)
    with pytest.raises(UserError) as refused:
        open_checkpoint(copy)
    assert message in str(refused.value) and str(copy) in str(refused.value)


def test_numbers_that_are_not_finite(copy):
    edit_weights(copy, lambda w: w["model.layers.1.mlp.up_proj.weight"].view(-1)[7].fill_(float("nan")))
    with pytest.raises(UserError, match=r"copy: model\.layers\.1\.mlp\.up_proj\.weight holds numbers .* not finite"):
        imported(copy)


def test_a_copy_of_the_tied_embedding_must_be_one(tmp_path, copy):
    edit(copy, lambda config: config.update(tie_word_embeddings=True))
    with pytest.raises(UserError, match=r"lm_head\.weight is not the embedding"):
        imported(copy)
    edit_weights(copy, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    edit_weights(copy, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert imported(copy).output is None


def test_folders_that_are_not_whole(copy, tmp_path):
    def refusal(change):
        folder = Path(shutil.copytree(copy, tmp_path / "broken"))
        change(folder)
        with pytest.raises(UserError) as refused:
            open_checkpoint(folder)
        shutil.rmtree(folder)
        return str(refused.value).replace(str(folder), "FOLDER")

    def only_a_pickle(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def truncated(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    assert "holds only pytorch_model.bin, a pickle" in refusal(only_a_pickle)
    assert refusal(lambda f: (f / "model.safetensors").unlink()).startswith("FOLDER holds neither model.safetensors")
    assert refusal(lambda f: (f / "config.json").unlink()) == "FOLDER/config.json is missing"
    assert "FOLDER/config.json is damaged" in refusal(lambda f: (f / "config.json").write_text("{"))
    assert "expected a JSON object" in refusal(lambda f: (f / "config.json").write_text("[]"))
    assert "FOLDER/model.safetensors is damaged" in refusal(truncated)
    assert "FOLDER/model.safetensors is damaged" in refusal(lambda f: (f / "model.safetensors").write_bytes(b"x"))


def test_shards_that_are_not_whole(tmp_path):
    save_llama(tmp_path / "whole", shards="50KB")
    index = json.loads((tmp_path / "whole" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))

    def refusal(change, content=index):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "broken"))
        content = json.loads(json.dumps(content))
        change(folder, content.get("weight_map"))
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(UserError) as refused:
            open_checkpoint(folder)
        shutil.rmtree(folder)
        return str(refused.value).replace(str(folder), "FOLDER")

    gone = refusal(lambda folder, _: (folder / shards[1]).unlink())
    assert gone == f"FOLDER/{shards[1]} is missing; model.safetensors.index.json names it"
    name = next(n for n, shard in index["weight_map"].items() if shard == shards[0])
    assert f"lacks the tensor {name}" in refusal(lambda _, names: names.update({name: shards[1]}))
    outside = refusal(lambda _, names: names.update({name: "../whole/model.safetensors"}))
    assert "which is no safetensors file beside it" in outside
    assert "no safetensors file" in refusal(lambda _, names: names.update({name: "pytorch_model-00001.bin"}))
    assert "index.json is damaged" in refusal(lambda *_: None, {"metadata": {}})


def save_llama2c(path, weights, tied):
    """Write our reading of the format's description: interleaved rotary positions, all layers of a kind together."""
    header = [64, 128, 2, 4, 2, 99 if tied else -99, 128]
    names = ["input_layernorm", *(f"self_attn.{n}_proj" for n in "qkvo"), "post_attention_layernorm"]
    parts = [weights["model.embed_tokens.weight"]]
    for name in [*names, "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]:
        for i in range(2):
            weight = weights[f"model.layers.{i}.{name}.weight"]
            if name.endswith(("q_proj", "k_proj")):
                weight = weight.view(-1, 2, 8, 64).transpose(1, 2).reshape(weight.shape)
            parts.append(weight)
    parts += [weights["model.norm.weight"], torch.zeros(2, 128, 8)]
    parts += [] if tied else [weights["lm_head.weight"]]
    values = b"".join(part.float().contiguous().numpy().tobytes() for part in parts)
    path.write_bytes(struct.pack("<7i", *header) + values)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_files_of_llama2c(tmp_path, tokens, tied):
    model = save_llama(tmp_path / "llama", tie_word_embeddings=tied, rms_norm_eps=1e-5)
    save_llama2c(tmp_path / "x.bin", model.state_dict(), tied)
    supernet = imported(tmp_path / "x.bin")
    assert relative_error(whole(supernet)(tokens), model(tokens).logits) <= 1e-5
    theirs = imported(tmp_path / "llama").state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in supernet.state_dict().items())


def test_files_that_are_no_llama2c(tmp_path, plain):
    weights, path = load_file(plain / "model.safetensors"), tmp_path / "x.bin"
    save_llama2c(path, weights, False)
    good = path.read_bytes()
    for content, message in (
        (good[:-4], "x.bin is truncated: its header asks for"),
        (good + b"1234", "x.bin is too long"),
        (good[:20], "is no file of llama2.c, version 0: its header is too short"),
        (b"PK\x03\x04" + good[4:], "a pickle, which could run code"),
        (struct.pack("<I", 0x616B3432) + good[4:], "is no file of llama2.c"),
        (struct.pack("<7i", 64, 128, 2, 4, 0, 99, 128) + good[28:], "is no file of llama2.c"),
        (struct.pack("<7i", 64, 128, 2, 5, 5, 99, 128) + good[28:], "is no file of llama2.c"),
        (struct.pack("<7i", 64, 128, 2, 4, 3, 99, 128) + good[28:], "3 key-value heads do not divide 4"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_checkpoint(path)
    weights["model.norm.weight"][3] = float("inf")
    save_llama2c(path, weights, False)
    with pytest.raises(UserError, match=r"x.bin: norm holds numbers that are not finite"):
        imported(path)


# ---- a real one: stories260K, Karpathy's TinyStories (../shared/data)


def pieces(path):
    """Return (bytes, score) of every token of a tok*.bin of llama2.c."""
    raw, position, found = path.read_bytes(), 4, []
    while position < len(raw):
        score, length = struct.unpack_from("<fi", raw, position)
        found.append((raw[position + 8 : position + 8 + length], score))
        position += 8 + length
    return found


def encoder(path):
    """Return what tokenizes as sentencepiece does: pairs merge by score; no token crosses a space."""
    tokens = pieces(path)
    ids = {token: i for i, (token, _) in reversed(list(enumerate(tokens)))}

    @cache
    def word(text):
        found = [i for c in text for i in ([ids[c.encode()]] if c.encode() in ids else [b + 3 for b in c.encode()])]
        while True:
            joined = [ids.get(tokens[a][0] + tokens[b][0]) for a, b in pairwise(found)]
            known = [(tokens[i][1], -at) for at, i in enumerate(joined) if i is not None]
            if not known:
                return found
            at = -max(known)[1]
            found[at : at + 2] = [joined[at]]

    return lambda text: [i for part in re.findall(" ?[^ ]*", f" {text}") if part for i in word(part)]


def nll(decoder, sequences):
    """Return the mean loss in nats per token of sequences, each behind a BOS (1)."""
    total = count = 0
    for sequence in sequences:
        row = torch.tensor([[1, *sequence]])
        total += F.cross_entropy(decoder(row[:, :-1])[0], row[0, 1:], reduction="sum").item()
        count += len(sequence)
    return total / count


@torch.no_grad()
@pytest.mark.skipif(not (DATA / "stories260k").exists(), reason="../shared/data is not here")
def test_a_real_llama_has_the_loss_that_it_is_known_for():
    folder, texts = DATA / "stories260k", DATA / "tinystories"
    encode, supernet = encoder(folder / "tok512.bin"), imported(folder / "stories260K.bin")
    assert supernet.layers[0]["mlp"].widths == (96, 192)
    stories = [text.strip() for text in (texts / "tinystories_sample.txt").read_text().split("<|endoftext|>")]
    assert nll(whole(supernet), [encode(text) for text in stories if text]) == pytest.approx(1.266, abs=0.002)
    ids = encode((texts / "niklas6.txt").read_text()[:40_000])[:10_220]
    windows = [ids[i : i + 511] for i in range(0, len(ids), 511)]
    assert nll(whole(supernet), windows) == pytest.approx(1.482, abs=0.001)
    assert nll(extract(supernet, supernet.space.largest), windows) == pytest.approx(1.482, abs=0.001)
    for bits, loss in ((8, 1.482), (4, 1.648), (3, 2.620)):  # our own: what others get depends on where zero lies
        decoder = whole(supernet)
        for linear in decoder.linears():
            linear.weight.copy_(rounded_to_nearest(linear.weight, bits))
        assert nll(decoder, windows) == pytest.approx(loss, abs=0.003)


@torch.no_grad()
@pytest.mark.skipif(not (DATA / "stories260k").exists(), reason="../shared/data is not here")
def test_prefixes_of_a_real_llama_lose_less_when_ordered():
    folder, texts = DATA / "stories260k", DATA / "tinystories"
    encode, supernet = encoder(folder / "tok512.bin"), imported(folder / "stories260K.bin", d_model=[0.5, 1.0])
    calibration = torch.tensor([[1, *encode((texts / "ahmed_valid.txt").read_text()[:4000])[:510]]])
    ids = encode((texts / "niklas6.txt").read_text()[:4000])[:511]
    architecture = supernet.space.full_precision(supernet.space.largest)
    widths = {name: 96 for name in architecture if name.endswith("mlp.width")}
    cuts = {"none": {}, "d_model": {"d_model": 32}, "mlp": widths}

    def losses():
        return {key: nll(extract_architecture(supernet, architecture | cut), [ids]) for key, cut in cuts.items()}

    before = losses()
    order_by_importance(supernet, calibration)
    after = losses()
    assert after["none"] == pytest.approx(before["none"], rel=1e-5)
    assert after["d_model"] < before["d_model"] and after["mlp"] < before["mlp"]


def rounded_to_nearest(weight, bits):
    """Return each row in `bits` with one scale: its entry of largest magnitude becomes the lowest code."""
    largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    scale = largest / -(2 ** (bits - 1))
    codes = (weight / scale).round().nan_to_num(0).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes * scale


def test_what_is_no_checkpoint_is_a_run(tmp_path):
    assert open_checkpoint(tmp_path) is None and open_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(UserError, match=r"model\.init: .*nowhere does not exist"):
        origin({"init": str(tmp_path / "nowhere")})
    assert origin({}) == origin({"init": None}) == {"flops_before": 0.0}
