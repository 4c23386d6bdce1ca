import json
import os
import subprocess

import pytest

from supernet.errors import UserError
from supernet.files import FORMAT_VERSION, Parts, read_json, replacing, sha256, temporary_beside, write_json, write_text
from supernet.randomness import derive, generator


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("text")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "text"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".file.txt.{dead.pid}.tmp").write_text("half")
    (tmp_path / f".folder.{dead.pid}.tmp").mkdir()
    living = tmp_path / f".file.txt.{os.getppid()}.tmp"
    living.write_text("being written")
    write_text(tmp_path / "file.txt", "whole")
    assert temporary_beside(tmp_path / "folder").name == f".folder.{os.getpid()}.tmp"
    assert sorted(tmp_path.iterdir()) == [living, tmp_path / "file.txt"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file.txt"):
        pass
    assert not list(tmp_path.iterdir())


def test_text_is_utf8_and_replaces(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old and longer")
    write_text(path, "ünïcödé 🐍\n")
    assert path.read_bytes() == "ünïcödé 🐍\n".encode()


def test_json_round_trip(tmp_path):
    content = {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert next(iter(json.loads((tmp_path / "x.json").read_text()))) == "version"


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_another_version_is_refused(tmp_path, version):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"version": version}))
    with pytest.raises(UserError, match=rf"x\.json has format version {version!r}; this program reads"):
        read_json(path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 1', b"[1]", b"3", b"\xff\xfe{}", b"nul"])
def test_damaged_json_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is damaged"):
        read_json(path)


def test_missing_json(tmp_path):
    with pytest.raises(UserError, match=r"x\.json is missing: the stage that writes it has not finished"):
        read_json(tmp_path / "x.json")


def test_sha256(tmp_path):
    write_text(tmp_path / "x", "abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_seeds_depend_on_every_part():
    seeds = [derive(0, "a", 1), derive(1, "a", 1), derive(0, "b", 1), derive(0, "a", 2), derive(0, "a", "1")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "a", 1) == derive(0, "a", 1) == 1675891806973429058
    assert generator(0, "a", 1).random() == generator(0, "a", 1).random()


def test_parts_are_made_once_and_go_with_the_whole(tmp_path):
    whole, made = tmp_path / "whole.json", []
    assert Parts(whole).part("a", lambda: made.append("a") or [0.1, None]) == [0.1, None]
    parts = Parts(whole)  # after a kill
    assert parts.part("a", lambda: made.append("again")) == [0.1, None]
    assert parts.part("b", lambda: made.append("b")) is None
    assert made == ["a", "b"] and (tmp_path / "whole.parts.json").exists()
    parts.done()
    parts.done()
    assert not list(tmp_path.iterdir())
