import json
import time

import pytest

from supernet.corpus import Document, HubDataset, StandardLibrary, TextFiles
from supernet.errors import UserError
from supernet.splits import split_documents

FRACTIONS = {"gate": 0.04, "valid": 0.04, "test": 0.04}


def hub(**changes):
    values = dict(name="owner/data", config=None, split="train", text_key="text", streaming=True)
    return HubDataset(**{**values, "revision": None, "max_documents": None, **changes})


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_standard_library_has_packages_and_modules_but_no_tests():
    documents = list(StandardLibrary().documents())
    names = [document.name for document in documents]
    assert names == sorted(names, key=lambda name: name.removesuffix(".py").split("/"))
    assert len(names) == len(set(names)) > 300
    slices = {document.slice for document in documents}
    assert {"asyncio", "json", "argparse"} <= slices
    assert not {"test", "idlelib", "site-packages"} & slices
    assert not any("/tests/" in name or "test_" in name.split("/")[-1][:5] for name in names)


def test_text_files_of_every_kind(tmp_path):
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "c.txt").write_text("hidden")
    (folder / "b.txt").write_bytes(b"line\r\n\ttab \xf0\x9f\x90\x8d\n")
    (folder / "deep" / "a[1].md").write_text("# title", encoding="utf-8")
    (folder / "image.png").write_bytes(b"\x89PNG")
    write_rows(folder / "r[1].jsonl", [{"text": "one", "n": 1}, {"text": "two", "n": 2}])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["three", "four"]}), tmp_path / "p.parquet")
    source = TextFiles([str(folder), str(tmp_path / "p.parquet"), str(folder / "b.txt")], "text")
    assert list(source.documents()) == [
        Document("line\r\n\ttab 🐍\n", "notes/b.txt", "notes/b.txt"),
        Document("# title", "notes/deep/a[1].md", "notes/deep/a[1].md"),
        Document("one", "notes/r[1].jsonl:0", "notes/r[1].jsonl"),
        Document("two", "notes/r[1].jsonl:1", "notes/r[1].jsonl"),
        Document("three", "p.parquet:0", "p.parquet"),
        Document("four", "p.parquet:1", "p.parquet"),
    ]
    assert list(source.documents()) == list(source.documents())


def test_text_files_are_not_copied_to_the_home_directory(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    write_rows(tmp_path / "rows.jsonl", [{"text": "one"}])
    assert len(list(TextFiles([str(tmp_path / "rows.jsonl")], "text").documents())) == 1
    assert list(home.rglob("*")) == []


def test_text_files_errors(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"body": "one"}])
    (tmp_path / "broken.jsonl").write_text('{"text": "one"\n{]')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "page.html").write_text("<p>")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "missing.txt": "does not exist",
        "page.html": "is none of .jsonl, .md, .parquet, .txt",
        "empty": "no file below",
        "latin.txt": "not UTF-8",
        "broken.jsonl": "damaged",
        "rows.jsonl": r"row 1: no text in column 'text' \(columns: body\); see data.corpus.text_key",
    }.items():
        start = time.perf_counter()
        with pytest.raises(UserError, match=message):
            list(TextFiles([str(tmp_path / name)], "text").documents())
        assert time.perf_counter() - start < 10
    with pytest.raises(UserError, match="paths is empty"):
        list(TextFiles([], "text").documents())


def test_hub_is_refused_at_once_when_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.perf_counter()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        next(hub().documents())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    with pytest.raises(UserError, match=r"no connection to 127\.0\.0\.1:9"):
        next(hub().documents())
    assert time.perf_counter() - start < 4


def test_hub_fingerprint_needs_a_pinned_commit():
    assert hub().fingerprint() is None
    assert hub(revision="main").fingerprint() is None
    pinned = hub(revision="0123456789" * 4)
    assert pinned.fingerprint() == hub(revision="0123456789" * 4).fingerprint() is not None
    assert pinned.fingerprint() != hub(revision="0123456789" * 4, split="test").fingerprint()
    with pytest.raises(UserError, match="max_documents"):
        hub(max_documents=0)


def lines(seed, count):
    return "".join(f"{seed} line {(seed * 7919 + number * 104729) % 1009}\n" for number in range(count))


def test_splits_are_disjoint_whole_and_of_the_asked_size():
    documents = [Document(lines(i, 10 + i % 50), f"d{i}", f"s{i % 7}") for i in range(400)]
    documents.append(Document(lines(1000, 9000), "giant", "g"))
    splits = split_documents(documents, FRACTIONS)
    assert list(splits) == ["train", "gate", "valid", "test"]
    dealt = [document for split in splits.values() for document in split]
    assert sorted(dealt, key=lambda d: d.name) == sorted(documents, key=lambda d: d.name)
    assert documents[-1] in splits["train"]
    total = sum(len(document.text) for document in documents)
    for name in FRACTIONS:
        assert sum(len(document.text) for document in splits[name]) == pytest.approx(0.04 * total, rel=0.1)
    assert splits == split_documents(documents, FRACTIONS)


def test_splits_are_equally_hard():
    # Half of the documents are easy, half hard; by chance alone 8 of a kind would often meet.
    easy = [Document(f"name {i}\n" + "pass\n" * (200 + i), f"easy{i}", "easy") for i in range(100)]
    hard = [Document(lines(i, 60 + i), f"hard{i}", "hard") for i in range(100)]
    splits = split_documents(easy + hard, FRACTIONS)
    shares = []
    for name in FRACTIONS:
        texts = splits[name]
        shares.append(sum(len(d.text) for d in texts if d.slice == "hard") / sum(len(d.text) for d in texts))
    assert max(shares) - min(shares) < 0.12


def test_one_document_is_cut_at_lines_and_put_together_again():
    text = lines(1, 4000)
    splits = split_documents([Document(text, "book", "s")], FRACTIONS)
    assert all(splits.values())
    pieces = [document.text for split in splits.values() for document in split]
    assert all(piece in text and piece.endswith("\n") for piece in pieces)
    assert sum(map(len, pieces)) == len(text)
    assert {document.slice for split in splits.values() for document in split} == {"s"}
    # Neighboring pieces of the training split are one document again.
    held_out = sum(len(splits[name]) for name in FRACTIONS)
    assert len(splits["train"]) <= held_out + 1


def test_one_long_line_is_cut_too():
    text = "ab" * 50_000
    splits = split_documents([Document(text, "line", "s")], FRACTIONS)
    assert sum(len(document.text) for split in splits.values() for document in split) == len(text)


def test_split_errors():
    documents = [Document(lines(1, 100), "d", "s")]
    with pytest.raises(UserError, match=r"data\.gate_fraction is 0"):
        split_documents(documents, {"gate": 0.0})
    with pytest.raises(UserError, match="50% at most"):
        split_documents(documents, {"valid": 0.3, "test": 0.3})
    with pytest.raises(UserError, match="too small for 4 splits"):
        split_documents([Document("short", "d", "s")], FRACTIONS)
