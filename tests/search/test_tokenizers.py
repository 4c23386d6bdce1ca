"""Token ids are equal in the run, in llama.cpp and in transformers, for every kind of tokenizer."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from search.targets.gguf_tokenizer import vocabulary
from search.targets.huggingface import export
from search.targets.llama_cpp import LlamaCpp
from supernet.blocks.attention import ElasticAttention
from supernet.blocks.swiglu import ElasticSwiGLU
from supernet.errors import UserError
from supernet.model import Supernet
from supernet.subnet import Decoder, extract
from supernet.tokenizer import Tokenization
from supernet.tokenizer.reading import load_tokenizer
from tests.tokenizer_kinds import (
    BEGIN,
    CHAT,
    END,
    LLAMA3_SPLIT,
    PAGE,
    SPECIALS,
    STORIES,
    TURN,
    byte_level,
    folder_of,
    llama2,
    llama3,
    ours,
    split_by,
)

KINDS = ["ours", "llama3", "llama3, merges", "qwen2", "smollm", "gpt2 by a split", "llama2", "no prefix", "stories"]
SETTINGS: dict[str, Any] = dict(n_threads=1, kv_cache="F16", prefill_tokens=4, decode_tokens=4, repeats=1, quantizer=())
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

IN_TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer

texts = json.load(open(sys.argv[1]))
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Hi"}]
    print(json.dumps({
        "parsed": [tokenizer(text)["input_ids"] for text in texts],
        "as text": [tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts],
        "special": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token],
        "chat": tokenizer.apply_chat_template(chat, tokenize=False) if tokenizer.chat_template else None,
    }))
"""


@pytest.fixture(scope="module")
def tokenizations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenization]:
    """Return one tokenizer of each kind, as a run gets it."""
    folder = tmp_path_factory.mktemp("tokenizers")

    def given(tokenizer: Tokenizer, name: str, **config: Any) -> Tokenization:
        return load_tokenizer(folder_of(tokenizer, folder / name, **config))

    end = ["<|endoftext|>"]
    digits: Any = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    found = {
        "ours": ours(),
        "llama3": given(llama3(), "3", bos_token=BEGIN, eos_token={"content": TURN}, chat_template=CHAT),
        "llama3, merges": given(llama3(ignore_merges=False), "3m"),
        "qwen2": given(byte_level(split_by(LLAMA3_SPLIT.replace("{1,3}", "")), end), "q"),
        "smollm": given(byte_level(pre_tokenizers.Sequence(digits), end), "s"),
        "gpt2 by a split": given(byte_level(split_by(GPT2_SPLIT), end), "g"),
        "llama2": given(llama2(), "2", bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT),
        "no prefix": given(llama2(prefix=False), "2n", bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
    }
    return found | ({"stories": load_tokenizer(STORIES)} if STORIES.exists() else {})


def of_kind(tokenizations: dict[str, Tokenization], kind: str) -> Tokenization:
    if kind not in tokenizations:
        pytest.skip(f"{STORIES} is absent")
    return tokenizations[kind]


def decoder(vocab_size: int) -> Decoder:
    """Return a net of one small layer."""
    torch.manual_seed(0)
    formats: dict[str, Any] = {"qkv_formats": ("F16",), "o_formats": ("F16",), "droppable": False}
    attention = partial(ElasticAttention, head_dim=32, kv_heads=(1,), heads_per_kv=(1,), **formats)
    formats = {"gate_up_formats": ("F16",), "down_formats": ("F16",), "droppable": False}
    blocks: dict[str, Any] = {"attention": attention, "mlp": partial(ElasticSwiGLU, width=(32,), **formats)}
    net = Supernet(vocab_size, 128, 1, (32,), 32, 1e4, 1e-5, ("F16",), blocks)
    return extract(net, net.space.largest)


def prompts(tokenization: Tokenization, texts: list[str]) -> list[list[int]]:
    """Return the ids that the tokenizers library gives: special tokens are recognized, and placed."""
    tokenizer = Tokenizer.from_str(tokenization.json)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def random_texts(n: int) -> list[str]:
    """Return texts that mix words of the page with single characters of many scripts and kinds of space."""
    rng = random.Random(0)
    words = [word for text in PAGE for word in text.split(" ")]
    characters = [
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "'",
        "'s",
        "'LL",
        "1",
        "23",
        "▁",
        "<",
        ">",
        "\u0301",
        "\u00a0",
        "\u3000",
    ]
    characters += [chr(rng.choice([rng.randrange(32, 0x600), rng.randrange(0x900, 0xD7FF)])) for _ in range(300)]
    texts = ("".join(rng.choice(words if rng.random() < 0.3 else characters) for _ in range(30)) for _ in range(n))
    return ["".join(c for c in text if c.isprintable() or c in "\n\t\r \u00a0\u3000") for text in texts]


@pytest.fixture(scope="module")
def target() -> LlamaCpp:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    return LlamaCpp("llama_cpp", **SETTINGS, timeout_s=300, hardware=None)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_equal_in_llama_cpp(
    tokenizations: dict[str, Tokenization], kind: str, target: LlamaCpp, tmp_path: Path
) -> None:
    tokenization = of_kind(tokenizations, kind)
    net = decoder(tokenization.vocab_size + 3)  # three embeddings stay without a token
    path = target.export(net, tokenization.json, tmp_path, tokenization.files)
    texts = [*PAGE, *SPECIALS, "\n".join(PAGE), *random_texts(200)]
    # As a corpus is encoded, and as a prompt is.
    ids = target.tokenize(path, texts, add_special=False, parse_special=False)
    assert ids == [e.ids for e in tokenization.tokenizer.encode_batch(texts, add_special_tokens=False)]
    for text, one, other in zip(
        texts, target.tokenize(path, texts, add_special=True), prompts(tokenization, texts), strict=True
    ):
        assert one == other, text


def test_ids_are_equal_in_transformers(tokenizations: dict[str, Tokenization], tmp_path: Path) -> None:
    texts = [*PAGE, *SPECIALS, "\n".join(PAGE), *random_texts(50)]
    folders = [tmp_path / str(i) for i in range(len(tokenizations))]
    for folder, tokenization in zip(folders, tokenizations.values(), strict=True):
        export(decoder(tokenization.vocab_size + 3), tokenization.json, folder, files=tokenization.files)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", IN_TRANSFORMERS, "texts.json", *map(str, folders)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "incorrect" not in done.stderr
    for line, tokenization in zip(done.stdout.splitlines(), tokenizations.values(), strict=True):
        found = json.loads(line)
        assert found["parsed"] == prompts(tokenization, texts)
        bos = [tokenization.id_of(token) for token in tokenization.placed[0]]
        assert found["as text"] == [
            [*bos, *encoding.ids] for encoding in tokenization.tokenizer.encode_batch(texts, add_special_tokens=False)
        ]
        assert found["special"] == [tokenization.bos, tokenization.eos, tokenization.named("unk_token")]
        assert found["chat"] == (f"{tokenization.bos}[user] Hi\n" if tokenization.chat_template else None)


def test_what_came_along_is_shipped(tokenizations: dict[str, Tokenization], tmp_path: Path) -> None:
    import gguf

    tokenization = tokenizations["llama3"]
    net = decoder(tokenization.vocab_size)
    export(net, tokenization.json, tmp_path / "hf", files=tokenization.files)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == [
        "LICENSE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "hf" / "LICENSE").read_text() == "Use it as you like.\n"
    ids = {"bos_token_id": tokenization.id_of(BEGIN), "eos_token_id": tokenization.id_of(TURN)}
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation == {"do_sample": True, "temperature": 0.6, **ids}
    assert ids.items() <= json.loads((tmp_path / "hf" / "config.json").read_text()).items()
    path = LlamaCpp("llama_cpp", **SETTINGS, timeout_s=300, hardware=None).export(
        net, tokenization.json, tmp_path, tokenization.files
    )
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.chat_template"].contents() == CHAT
    assert fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    for key in ids:
        assert fields[f"tokenizer.ggml.{key}"].contents() == ids[key]
    # Documents are separated by what separated them in pretraining, whatever ends an answer.
    assert tokenization.starts_documents == [tokenization.id_of(END), tokenization.id_of(BEGIN)]


def changed(tokenization: Tokenization, *path: Any, value: Any) -> Tokenization:
    """Return a tokenizer with one value of its JSON replaced."""
    content = json.loads(tokenization.json)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return Tokenization(json.dumps(content))


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
REFUSED: dict[str, tuple[str, tuple[Any, ...], Any, str]] = {
    "a splitter of its own": (
        "llama3",
        ("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"),
        r"\s+",
        "splits text",
    ),
    "no splitter": ("ours", ("pre_tokenizer", "use_regex"), False, "splits text"),
    "a prefix": ("ours", ("pre_tokenizer", "add_prefix_space"), True, "splits text"),
    "merges ignored": ("ours", ("model", "ignore_merges"), True, "splits text"),
    "a normalizer": ("ours", ("normalizer",), {"type": "NFC"}, "normalize.*NFC"),
    "another normalizer": ("llama2", ("normalizer",), {"type": "NFKC"}, "begins with a space"),
    "a metaspace": ("llama2", ("pre_tokenizer",), METASPACE, "begins with a space"),
    "a greedy token": ("llama3", ("added_tokens", 0, "rstrip"), True, "stands around it"),
    "merges that miss some": ("llama2", ("model", "merges"), [], "would merge parts of text"),
}


@pytest.mark.parametrize(("kind", "path", "value", "phrase"), REFUSED.values(), ids=REFUSED)
def test_a_gguf_file_refuses_what_llama_cpp_reads_otherwise(
    tokenizations: dict[str, Tokenization], kind: str, path: tuple[Any, ...], value: Any, phrase: str
) -> None:
    tokenization = changed(tokenizations[kind], *path, value=value)
    with pytest.raises(UserError, match=phrase) as error:
        vocabulary(tokenization, 2000)
    assert "\n" not in str(error.value)
    quick = LlamaCpp("llama_cpp", **SETTINGS, timeout_s=1, hardware=None)
    assert quick.supports_tokenizer(tokenization, 2000) == str(error.value)  # before a search spends anything
    assert quick.supports_tokenizer(tokenizations[kind], 2000) is None


def test_other_models_and_too_many_tokens_are_refused(tokenizations: dict[str, Tokenization], tmp_path: Path) -> None:
    for model in (models.WordPiece({"a": 0}, unk_token="a"), models.Unigram([("a", 0.0)]), models.WordLevel({"a": 0})):
        with pytest.raises(UserError, match="needs a BPE"):
            vocabulary(Tokenization(Tokenizer(model).to_str()), 10)
    for kind in ("ours", "llama3", "llama2"):
        tokenization = tokenizations[kind]
        small = decoder(tokenization.vocab_size - 1)
        with pytest.raises(UserError, match="embeddings"):
            export(small, tokenization.json, tmp_path / "hf")
        with pytest.raises(UserError, match="embeddings"):
            vocabulary(tokenization, tokenization.vocab_size - 1)
    assert not list(tmp_path.iterdir())
