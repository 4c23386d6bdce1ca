import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from supernet.corpus import Corpus, Document, TextFiles
from supernet.data import SPLITS, prepare
from supernet.errors import UserError

ROOT = Path(__file__).parents[2]
ODD = "emoji 🐍👩‍👩‍👧, CRLF\r\n\ttabs\t\x00 ünïcödé  <|endoftext|>   \n\n  trailing "


class Words(Corpus):
    """Documents of numbered words, three slices."""

    def __init__(self, n_documents=200, text=None):
        self.n_documents = n_documents
        self.text = text

    def documents(self):
        for i in range(self.n_documents):
            words = (f"w{(i * 31 + k * 17) % 97}" for k in range(60 + i % 40))
            yield Document(self.text or f"document {i} " + " ".join(words), f"d{i}", f"slice{i % 3}")

    def describe(self):
        return {"_target_": "tests.Words", "n_documents": self.n_documents}


def build(cache, corpus=None, **changes):
    values = dict(vocab_size=300, tokenizer_file=None, sequence_length=32)
    fractions = dict(gate_fraction=0.04, valid_fraction=0.04, test_fraction=0.04)
    return prepare(corpus or Words(), str(cache), **{**values, **fractions, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cache"))


def test_importing_is_light():
    heavy = "{'lightning', 'datasets', 'transformers'}"
    code = f"import sys, supernet.data; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_same_corpus_same_bytes(data, tmp_path):
    again = build(tmp_path)
    assert again.hash == data.hash
    names = sorted(path.name for path in data.directory.iterdir())
    assert names == sorted(path.name for path in again.directory.iterdir())
    assert len(names) == 10
    for name in set(names) - {"index.json"}:  # the index names the cache's folder
        assert (data.directory / name).read_bytes() == (again.directory / name).read_bytes()


def test_every_setting_that_decides_bytes_is_in_the_hash(data, tmp_path):
    hashes = {data.hash}
    for changes in ({"vocab_size": 290}, {"test_fraction": 0.05}, {"corpus": Words(199)}):
        hashes.add(build(tmp_path, **changes).hash)
    assert len(hashes) == 4
    assert build(tmp_path, sequence_length=16).hash == data.hash


def test_tokens_are_the_documents(data):
    assert data.end_of_text_id == 0
    assert data.vocab_size == 300
    found = []
    for split in SPLITS:
        tokens = np.fromfile(data.directory / f"{split}.bin", np.uint16)
        texts = np.split(tokens, np.flatnonzero(tokens == 0))[1:]
        found += [data.tokenizer.decode(text[1:].tolist(), skip_special_tokens=False) for text in texts]
    expected = {document.text for document in Words().documents()}
    assert set(found) == expected and len(found) == len(expected) == 200


def test_slices_are_those_of_the_documents(data):
    expected = {document.text: document.slice for document in Words().documents()}
    assert data.slices == ["slice0", "slice1", "slice2"]
    tokens = np.memmap(data.directory / "train.bin", np.uint16, mode="r")
    starts = np.flatnonzero(np.array(tokens) == 0)
    for start, end in itertools.pairwise(starts):
        text = data.tokenizer.decode(tokens[start + 1 : end].tolist())
        ids = data.slice_of("train", np.array([[start, end - 1]]))
        assert ids.shape == (1, 2)
        assert [data.slices[i] for i in ids[0]] == [expected[text]] * 2


def test_batches_depend_on_their_arguments_alone(data):
    first = data.batch("train", 1, 5, 4, 32)
    assert first.shape == (4, 33) and first.dtype == torch.int64
    assert torch.equal(first, data.batch("train", 1, 5, 4, 32))
    for other in (("gate", 1, 5), ("train", 2, 5), ("train", 1, 6)):
        assert not torch.equal(first, data.batch(*other, 4, 32))
    longest = data.n_tokens("gate") - 1
    assert torch.equal(data.batch("gate", 0, 0, 1, longest), data.batch("gate", 9, 9, 1, longest))


def test_evaluation_windows_are_spread_and_do_not_overlap(data):
    n_tokens = data.n_tokens("valid")
    for count in (1, 3, 10, 10_000):
        starts = data.evaluation_starts("valid", count, 32)
        assert len(starts) == min(count, (n_tokens - 1) // 32)
        assert starts.min() >= 0 and starts.max() + 33 <= n_tokens
        gaps = np.diff(starts)
        assert len(starts) == 1 or (gaps.min() >= 32 and gaps.max() - gaps.min() <= 1)
        assert abs((starts[0] + starts[-1] + 33) / 2 - n_tokens / 2) <= 2
        windows = data.evaluation_batch("valid", count, 32)
        assert windows.shape == (len(starts), 33)
    assert data.evaluation_starts("valid", 3, 32)[0] > n_tokens // 10


def test_a_whole_cache_is_reused_and_a_damaged_one_rebuilt(tmp_path):
    first = build(tmp_path)
    path = first.directory / "train.bin"
    stamp = path.stat().st_mtime_ns
    build(tmp_path)
    assert path.stat().st_mtime_ns == stamp
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    assert build(tmp_path).n_tokens("train") == first.n_tokens("train")
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    build(tmp_path)
    assert path.read_bytes() == content
    (first.directory / "index.json").write_text("{")
    (first.directory / "gate.bin").unlink()
    assert build(tmp_path).describe() == first.describe()
    assert [entry.name for entry in tmp_path.iterdir()] == [first.hash]


def test_odd_text_survives_the_round_trip(data):
    ids = data.tokenizer.encode(ODD, add_special_tokens=False).ids
    assert 0 not in ids
    assert data.tokenizer.decode(ids, skip_special_tokens=False) == ODD


def test_a_tokenizer_file_is_used(data, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(data.tokenizer_json)
    other = build(tmp_path, vocab_size=None, tokenizer_file=str(path))
    assert other.tokenizer_json == data.tokenizer_json
    assert other.hash != data.hash
    with pytest.raises(UserError, match="does not exist"):
        build(tmp_path, tokenizer_file=str(tmp_path / "none.json"))
    path.write_text("{}")
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        build(tmp_path, tokenizer_file=str(path))
    path.write_text(data.tokenizer_json.replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(UserError, match="no token"):
        build(tmp_path, tokenizer_file=str(path))


def test_one_text_file_is_a_corpus(tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"line {i} of {i * i % 1013}\n" for i in range(3000)))
    corpus = TextFiles([str(tmp_path / "book.txt")], "text")
    data = build(tmp_path / "cache", corpus)
    assert all(data.n_tokens(split) > 200 for split in SPLITS)
    assert data.slices == ["book.txt"]


def test_a_pinned_corpus_is_not_read_when_its_cache_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(Words, "fingerprint", lambda self: "pinned")
    first = build(tmp_path)
    monkeypatch.setattr(Words, "documents", None)
    assert build(tmp_path).describe() == first.describe()


def test_copies_do_not_leak_between_splits(tmp_path):
    with pytest.raises(UserError, match="too small for 4 splits"):
        build(tmp_path, Words(50, text="the same every time"))


def test_errors(tmp_path):
    with pytest.raises(UserError, match="corpus is empty"):
        build(tmp_path, Words(3, text=" \n"))
    with pytest.raises(UserError, match="expected 257 or more"):
        build(tmp_path, vocab_size=100)
    with pytest.raises(UserError, match=r"vocab_size is null"):
        build(tmp_path, vocab_size=None)
    with pytest.raises(UserError, match=r"split gate has .* a larger data\.gate_fraction"):
        build(tmp_path, sequence_length=100_000 // 16)
    with pytest.raises(UserError, match="sequence_length is 0"):
        build(tmp_path, sequence_length=0)


@pytest.mark.parametrize("name", ["stdlib", "text", "hub"])
def test_configurations_name_every_argument(name, tmp_path, monkeypatch):
    config = OmegaConf.load(ROOT / f"conf/data/{name}.yaml")
    assert yaml.safe_load((ROOT / f"conf/data/{name}.yaml").read_text())["_target_"] == "supernet.data.prepare"
    config.cache_dir = str(tmp_path / "cache")
    if name == "hub":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(Exception, match="HF_HUB_OFFLINE is set"):
            instantiate(config, sequence_length=256)
    if name == "text":
        (tmp_path / "book.txt").write_text("".join(f"line {i} of {i * i % 1013}\n" for i in range(4000)))
        config.corpus.paths = [str(tmp_path / "book.txt")]
        config.vocab_size = 300
        description = instantiate(config, sequence_length=256).describe()
        json.dumps(description)
        rebuilt = instantiate(description["config"])
        assert rebuilt.describe() == description
        assert description["config"] == OmegaConf.to_container(config) | {"sequence_length": 256}
