"""Tokenizers from files: what is read, what follows from it, and what is refused."""

import json
import shutil
import struct

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from supernet.corpus import Corpus, Document, TextFiles
from supernet.data import SPLITS, prepare
from supernet.errors import UserError
from supernet.run import TrainedSupernet
from supernet.tokenizer import END_OF_TEXT
from supernet.tokenizer.reading import load_tokenizer
from supernet.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, convert
from supernet.tokenizer.storing import write_tokenization
from tests.tokenizer_kinds import BEGIN, CHAT, END, STORIES, TURN, folder_of, llama2, llama3, ours

BYTE_PIECES = [(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]
SPECIAL_PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
MERGED = ["▁a", "bc", "▁abc", "cb", "▁▁", "aa"]
PIECES = [
    *SPECIAL_PIECES,
    *BYTE_PIECES,
    *((text, -float(i), NORMAL) for i, text in enumerate(MERGED)),
    *((text, -100.0, NORMAL) for text in "▁abc"),
]


def field(number, value):
    """Return a field of a protocol buffer: a number, or bytes with their length."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value % (1 << 64))
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def model(pieces=PIECES, trainer=(), normalizer=()):
    """Return the bytes of a sentencepiece model, BPE unless `trainer` says otherwise."""
    encoded = [field(1, field(1, text) + field(2, score) + field(3, kind)) for text, score, kind in pieces]
    specs = {2: {3: 2, 43: -1, **dict(trainer)}, 3: {1: "identity", **dict(normalizer)}}
    tail = [field(number, b"".join(field(k, v) for k, v in spec.items())) for number, spec in specs.items()]
    return b"".join(encoded + tail)


def test_a_sentencepiece_model_is_read(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model())
    tokenization = load_tokenizer(path)
    assert (tokenization.bos, tokenization.eos, tokenization.end_of_text) == ("<s>", "</s>", "</s>")
    assert tokenization.placed == (["<s>"], []) and tokenization.starts_documents == [2, 1]
    assert tokenization.vocab_size == len(PIECES)
    for text, pieces in {
        "abc": ["▁abc"],
        "acb": ["▁a", "cb"],
        "aabcbc": ["▁a", "a", "bc", "bc"],
        "  a": ["▁▁", "▁a"],
        "é<s>": ["▁", "<0xC3>", "<0xA9>", "<0x3C>", "<0x73>", "<0x3E>"],
        "": [],
    }.items():
        encoding = tokenization.tokenizer.encode(text, add_special_tokens=False)
        assert encoding.tokens == pieces
        assert tokenization.tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
    without = convert(model(trainer={41: -1}, normalizer={3: 0}))[0]
    assert without.encode("a").tokens == ["a"] and without.decode(without.encode(" a").ids) == " a"


def test_the_tokenizer_of_llama2_c():
    if not STORIES.exists():
        pytest.skip(f"{STORIES} is absent")
    tokenization = load_tokenizer(STORIES)
    text = "Once upon a time, there was a little girl named Lily. She saw 3 big, red balls!\n\tWow🌍 né"
    # What sentencepiece itself says.
    expected = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 394, 410, 472, 370, 432]
    expected += [352, 266, 268, 388, 419, 443, 13, 12, 448, 327, 243, 162, 143, 144, 297, 485]
    assert tokenization.tokenizer.encode(text, add_special_tokens=False).ids == expected
    assert tokenization.tokenizer.decode(expected) == text


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (model(trainer={3: 1}), "is a Unigram model"),
        (model(trainer={3: 4}), "is a character model"),
        (model(trainer={24: 1}), "otherwise than"),
        (model(normalizer={2: b"\x01\x02"}), "normalizes text"),
        (model(pieces=PIECES[:200]), "single bytes"),
        (model(pieces=[*PIECES, ("a", -9.0, NORMAL)]), "a piece twice"),
        (model(pieces=[*PIECES, ("new", 0.0, USER_DEFINED)]), "'new' is user-defined"),
        (model(pieces=[*PIECES, ("ab", 0.0, NORMAL)]), "the same score"),
        (model(pieces=[*PIECES, ("xy", -50.0, NORMAL)]), "a character that is no piece"),
        (model()[:-3], "no sentencepiece model"),
        (b"bm8gbW9kZWw= 1\nYXQgYWxs 2\n", "no sentencepiece model"),
        (b"", "no sentencepiece model"),
    ],
)
def test_other_sentencepiece_models_are_refused(tmp_path, content, phrase):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=phrase) as error:
        load_tokenizer(path)
    assert str(error.value).startswith(f"data.tokenizer_file: {path}") and "\n" not in str(error.value)


def test_a_folder_takes_along_what_goes_with_it(tmp_path):
    folder = folder_of(llama3(), tmp_path / "llama", bos_token=BEGIN, eos_token={"content": TURN, "lstrip": False})
    (folder / "chat_template.jinja").write_text(CHAT)
    (folder / "NOTICE.txt").write_text("Built with care.")
    (folder / "LICENSE.py").write_text("raise SystemExit")
    tokenization = load_tokenizer(folder)
    expected = {"LICENSE", "NOTICE.txt", "chat_template.jinja", "generation_config.json", "tokenizer_config.json"}
    assert set(tokenization.files) == expected
    assert tokenization.chat_template == CHAT
    assert (tokenization.bos, tokenization.eos, tokenization.end_of_text) == (BEGIN, TURN, END)
    alone = load_tokenizer(folder / "tokenizer.json")
    assert (alone.files, alone.bos, alone.eos) == ({}, BEGIN, END)
    assert alone.starts_documents == tokenization.starts_documents


def test_tokens_are_named_by_either_configuration(tmp_path):
    folder = folder_of(llama2(), tmp_path / "llama")
    assert load_tokenizer(folder).named("unk_token") is None
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": {"content": "<unk>"}, "eos_token": "<s>"}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "chat_template": [{"name": "tools", "template": "x"}]})
    )
    tokenization = load_tokenizer(folder)
    assert (tokenization.named("unk_token"), tokenization.eos, tokenization.chat_template) == ("<unk>", "</s>", None)


def test_the_configuration_may_place_tokens(tmp_path):
    """As it does in transformers' Llama; the tokenizer.json that is kept says the same."""
    for wanted, tokens in ((False, ["▁", "x"]), (True, ["<s>", "▁", "x"])):
        names = {"bos_token": "<s>", "eos_token": "</s>"}
        tokenization = load_tokenizer(folder_of(llama2(), tmp_path / str(wanted), add_bos_token=wanted, **names))
        kept = Tokenizer.from_str(tokenization.json)
        assert kept.encode("x").tokens == tokens
        assert len(tokenization.starts_documents) == 1 + wanted
    tokenization = load_tokenizer(folder_of(llama2(), tmp_path / "end", add_eos_token=True, **names))
    assert Tokenizer.from_str(tokenization.json).encode("x").tokens == ["<s>", "▁", "x", "</s>"]
    assert tokenization.placed == (["<s>"], ["</s>"])


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("tokenizer.json", "{", "is no tokenizer.json"),
        ("tokenizer.json", Tokenizer(models.WordPiece({"a": 0}, unk_token="a")).to_str(), "is a WordPiece tokenizer"),
        ("tokenizer.json", Tokenizer(models.Unigram([("a", 0.0)])).to_str(), "is a Unigram tokenizer"),
        ("tokenizer.json", Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str(), "is a WordLevel tokenizer"),
        ("tokenizer.json", Tokenizer(models.BPE({"a": 0}, [])).to_str(), "cannot write every text"),
        ("tokenizer.json", ours(300).json.replace(END_OF_TEXT, "<|end|>"), "no token that ends a text"),
        ("tokenizer.json", ours(300).json.replace('"dropout": null', '"dropout": 0.1'), "dropout"),
        ("tokenizer_config.json", '{"eos_token": ', "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        ("tokenizer_config.json", '{"bos_token": "<bos>"}', "names '<bos>' as bos_token"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja is damaged"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, name, content, phrase):
    folder = folder_of(Tokenizer.from_str(ours(300).json), tmp_path / "folder")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=phrase) as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)


class Lines(Corpus):
    def documents(self):
        for i in range(200):
            yield Document(
                f"document {i} </s> " + " ".join(f"w{(i * 31 + k * 17) % 97}" for k in range(50)), f"{i}", "a"
            )

    def describe(self):
        return {"_target_": "tests.Lines"}


def build(cache, tokenizer_file, vocab_size=None):
    fractions = dict(gate_fraction=0.04, valid_fraction=0.04, test_fraction=0.04)
    file = None if tokenizer_file is None else str(tokenizer_file)
    return prepare(Lines(), str(cache), vocab_size, file, **fractions, sequence_length=32)


def test_documents_begin_as_the_model_was_trained(tmp_path):
    folder = folder_of(llama2(), tmp_path / "llama", bos_token="<s>", eos_token="</s>")
    data = build(tmp_path / "cache", folder)
    texts = {document.text for document in Lines().documents()}
    found = set()
    for split in SPLITS:
        tokens = np.memmap(data.directory / f"{split}.bin", np.uint16, mode="r")
        starts = np.load(data.directory / f"{split}.documents.npy")[0]
        assert (tokens[starts] == 2).all() and (tokens[starts + 1] == 1).all()  # </s> <s>
        assert np.count_nonzero(tokens == 2) == len(starts)  # a </s> within a text is text
        found |= {data.tokenizer.decode(part[2:].tolist()) for part in np.split(np.array(tokens), starts[1:])}
    assert found == texts
    assert data.end_of_text_id == 2 and dict(data.tokenization.files)["LICENSE"]


def test_what_comes_along_names_the_cache(tmp_path):
    folder = folder_of(llama2(), tmp_path / "llama", bos_token="<s>", eos_token="</s>")
    first = build(tmp_path / "cache", folder)
    assert build(tmp_path / "cache", folder).directory == first.directory
    (folder / "LICENSE").write_text("Use it otherwise.\n")
    assert build(tmp_path / "cache", folder).hash != first.hash


def test_a_run_has_a_copy_of_its_tokenizer(tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"line {i} of {i * i % 1013}\n" for i in range(2000)))
    corpus = TextFiles([str(tmp_path / "book.txt")], "text")
    fractions = dict(gate_fraction=0.04, valid_fraction=0.04, test_fraction=0.04)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    given = [folder_of(llama2(), tmp_path / "llama", **names), tmp_path / "ours.json"]
    given[1].write_text(json.dumps(json.loads(ours(300).json)))  # not as the run writes its copy
    for path in given:
        data = prepare(corpus, str(tmp_path / "cache"), None, str(path), **fractions, sequence_length=32)
        run = tmp_path / f"run of {path.name}"
        write_tokenization(run / "supernet", data.tokenization)
        described = json.loads(json.dumps(data.describe()))
        trained = TrainedSupernet(run, None, {}, described, data.tokenizer_json, data.tokenization.files)
        if path.is_dir():
            (path / "LICENSE").write_text("Use it otherwise.\n")
            assert trained.tokens().hash == data.hash
        shutil.rmtree(data.directory)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        again = trained.tokens()
        assert (again.hash, again.tokenization) == (data.hash, data.tokenization)
        assert again.n_tokens("train") == data.n_tokens("train")


def test_caches_of_trained_tokenizers_are_what_they_were(tmp_path):
    """The name is that of version 0.1, so that no run of before is built again."""
    data = build(tmp_path, None, 300)
    assert data.hash == "958f6e49f0152b5d"
    assert not (data.directory / "tokenizer_files.json").exists()
