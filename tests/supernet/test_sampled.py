"""Text that a Llama wrote: the same every time, each window from where a text begins."""

import itertools

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from supernet import sampled
from supernet.caching import SPLITS
from supernet.config import build
from supernet.corpus import TextFiles
from supernet.errors import UserError
from supernet.sampled import Sampling, prepare
from supernet.tokenizer import train_tokenizer
from tests.supernet.llamas import save_llama

TEXT = "".join(f"line {i} of {i * i % 1013}\n" for i in range(3000))
SAMPLING = dict(temperature=[1.0, 1.3], top_k=0, top_p=1.0, checkpoint=None, n_tokens=680, seed=0, batch_size=16)
ROW = 17


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Return the folder of a Llama with more embeddings than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("sampled") / "llama"
    save_llama(folder, vocab_size=304)
    train_tokenizer([TEXT], 300).save(str(folder / "tokenizer.json"))
    return folder


def text_of(folder, corpus=None, share=1.0, **changes):
    """Return the data with caches beside the Llama's folder."""
    fractions = dict(gate_fraction=0.1, valid_fraction=0.1, test_fraction=0.1)
    values = dict(
        cache_dir=str(folder.parent / "cache"), vocab_size=None, tokenizer_file=str(folder), sequence_length=16
    )
    own = {key: changes.pop(key) for key in list(changes) if key in values | fractions}
    sampling = Sampling(**{**SAMPLING, "checkpoint": str(folder), **changes})
    return prepare(sampling, share, corpus, **{**values, **fractions, **own})


def all_rows(data):
    return {split: np.memmap(data.directory / f"{split}.bin", np.uint16, "r").reshape(-1, data.row) for split in SPLITS}


def test_every_window_is_a_row_that_begins_a_text(llama):
    data = text_of(llama)
    rows = all_rows(data)
    assert {split: len(found) for split, found in rows.items()} == {"train": 28, "gate": 4, "valid": 4, "test": 4}
    assert data.slices == ["sampled"] and (data.row, data.vocab_size) == (ROW, 300)
    for split in SPLITS:
        known = {tuple(row) for row in rows[split].tolist()}
        assert all(row[0] == data.end_of_text_id and max(row) < 300 for row in known)
        batch, evaluation = data.batch(split, 0, 3, 12, 16), data.evaluation_batch(split, 3, 16)
        assert batch.shape == (12, ROW) and evaluation.shape == (3, ROW)
        for windows in (batch, evaluation):
            assert {tuple(row) for row in windows.tolist()} <= known
        assert len(evaluation.unique(dim=0)) == 3
        assert {tuple(row) for row in data.batch(split, 0, 3, 100, 8).tolist()} <= {row[:9] for row in known}
        assert data.evaluation_slices(split, 3, 16).tolist() == [[0] * 16] * 3
    assert len({tuple(row) for found in rows.values() for row in found.tolist()}) == 40
    with pytest.raises(UserError, match="rows of 17 tokens, too few for sequences of 17"):
        data.batch("train", 0, 0, 1, 17)


def test_rows_are_those_of_their_settings_alone(llama, tmp_path):
    data = text_of(llama)
    again = text_of(llama, cache_dir=str(tmp_path), n_tokens=340, batch_size=16)
    # Row i is row i, however many there are.
    assert np.array_equal(all_rows(again)["train"][:14], all_rows(data)["train"][:14])
    hashes = {data.hash, again.hash}
    for change in (
        {"seed": 1},
        {"temperature": 0.5},
        {"temperature": [1.1, 1.3]},
        {"top_k": 3},
        {"top_p": 0.5},
        {"sequence_length": 8},
    ):
        other = text_of(llama, cache_dir=str(tmp_path), **change)
        hashes.add(other.hash)
        assert not np.array_equal(all_rows(other)["train"][0][:9], all_rows(data)["train"][0][:9]) or "sequence" in str(
            change
        )
    assert len(hashes) == 8


def test_a_kill_loses_one_shard(llama, tmp_path, monkeypatch):
    calls, generate = itertools.count(1), sampled.generate

    def killed(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(sampled, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        text_of(llama, cache_dir=str(tmp_path))
    left = [path.name for path in tmp_path.rglob("*.npy")]
    assert sorted(left) == ["000000000.npy", "000000016.npy"]
    data = text_of(llama, cache_dir=str(tmp_path))
    assert next(calls) == 5  # one more was enough
    assert [path.name for path in tmp_path.iterdir()] == [data.hash]
    wanted = all_rows(text_of(llama))
    assert all(np.array_equal(rows, wanted[split]) for split, rows in all_rows(data).items())


def test_what_data_json_says_makes_it_again(llama, tmp_path):
    (tmp_path / "notes.txt").write_text(TEXT)
    for corpus in (None, TextFiles(str(tmp_path / "notes.txt"), "text")):
        data = text_of(llama, corpus, 0.5)
        config = OmegaConf.create(data.describe()["config"])
        again = build(config)
        assert again.hash == data.hash and again.describe() == data.describe()
        config.sampling.seed = 1
        assert build(config).hash != data.hash


def test_a_share_of_the_training_text_is_sampled_and_nothing_else(llama, tmp_path):
    (tmp_path / "notes.txt").write_text(TEXT)
    corpus = TextFiles(str(tmp_path / "notes.txt"), "text")
    data = text_of(llama, corpus, 0.3)
    found = all_rows(data.sampled)
    assert {split: len(each) for split, each in found.items()} == {"train": 37, "gate": 1, "valid": 1, "test": 1}
    rows = {tuple(row) for row in found["train"].tolist()}
    taken = [tuple(row) in rows for step in range(40) for row in data.batch("train", 0, step, 10, 16).tolist()]
    assert 0.2 < np.mean(taken) < 0.4
    assert torch.equal(data.batch("train", 0, 7, 10, 16), data.batch("train", 0, 7, 10, 16))
    for split in ("gate", "valid", "test"):
        assert not {tuple(row) for row in data.batch(split, 0, 0, 30, 16).tolist()} & rows
    assert data.describe()["tokens"]["train"] > 10_000
    everything = text_of(llama, corpus, 1.0).batch("train", 0, 0, 30, 16)
    assert {tuple(row) for row in everything.tolist()} <= rows


def test_what_cannot_be_sampled(llama, tmp_path):
    refusals = {
        "data.share must be above 0": dict(share=0.0),
        "data.gate_fraction is 0.0": dict(gate_fraction=0.0),
        "data.tokenizer_file is null": dict(tokenizer_file=None),
        "n_tokens and batch_size must be 1 or more": dict(n_tokens=0),
        "data.sampling: temperature must be .* got 0": dict(temperature=0),
        "data.sampling: temperature must be .* got .1.0, -1.": dict(temperature=[1.0, -1]),
        r"data.sampling: temperature must be .* got \[\]": dict(temperature=[]),
        "data.sampling: temperature must be .* got abc": dict(temperature="abc"),
        "data.sampling.checkpoint: null is no pretrained Llama": dict(checkpoint=None),
        "sequence_length=129 exceeds what .* was made for, 128": dict(sequence_length=129),
    }
    for message, changes in refusals.items():
        with pytest.raises(UserError, match=message):
            text_of(llama, **{"cache_dir": str(tmp_path), **changes})
    save_llama(tmp_path / "small")
    with pytest.raises(UserError, match=r"it has 300 tokens, but .*small has 99 embeddings"):
        text_of(llama, cache_dir=str(tmp_path), checkpoint=str(tmp_path / "small"))
