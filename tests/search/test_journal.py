import json

import numpy as np
import pytest

from search.candidate import Candidate, Lineage
from search.journal import Journal
from supernet.errors import UserError


@pytest.fixture
def candidates(toy_space):
    rng = np.random.default_rng(0)
    lineage = Lineage(2, "cross + mutate", (0, 1), ("a.width", "fmt"), 7)
    return [
        Candidate(i, toy_space.sample(rng), {"loss": 1 / (i + 3), "size_mb": 0.1 + i}, 0.25 * i, lineage)
        for i in range(4)
    ]


@pytest.fixture
def path(tmp_path, toy_space, candidates):
    """Return a journal of four candidates."""
    Journal(tmp_path / "journal.jsonl", toy_space).append(candidates)
    return tmp_path / "journal.jsonl"


def change(path, number, **changes):
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    path.write_text("\n".join(lines) + "\n")


def test_candidates_come_back_as_they_were(path, toy_space, candidates):
    journal = Journal(path, toy_space)
    assert journal.candidates == candidates
    assert [c.feasible for c in journal.candidates] == [True, False, False, False]


def test_a_new_journal_is_empty(tmp_path, toy_space):
    assert Journal(tmp_path / "new.jsonl", toy_space).candidates == []
    assert not (tmp_path / "new.jsonl").exists()


def test_appending_in_parts_gives_the_same_bytes(tmp_path, path, toy_space, candidates):
    for candidate in candidates:
        Journal(tmp_path / "parts.jsonl", toy_space).append([candidate])
    assert (tmp_path / "parts.jsonl").read_bytes() == path.read_bytes()


def test_a_line_holds_plain_json(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["version"], line["id"], line["feasible"]) for line in lines[:2]] == [(1, 0, True), (1, 1, False)]
    assert lines[0]["lineage"]["operator"] == "cross + mutate"


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_dropped(path, toy_space, candidates, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path, toy_space)
    assert journal.candidates == candidates[:3]
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    journal.append(candidates[3:])
    assert path.read_bytes() == whole


def test_a_first_line_that_is_torn(path, toy_space):
    path.write_bytes(path.read_bytes()[:20])
    assert Journal(path, toy_space).candidates == []
    assert path.read_bytes() == b""


@pytest.mark.parametrize("damage", [b"{", b"", b"[1]", b"3", b"null", b"\xff\xfe", b'{"version":1}', b"{}"])
def test_a_damaged_line_in_the_middle_is_refused(path, toy_space, damage):
    lines = path.read_bytes().splitlines()
    lines[1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=r"journal\.jsonl, line 2 is damaged .*fresh=true"):
        Journal(path, toy_space)


@pytest.mark.parametrize("key", ["genome", "scores", "lineage", "violation", "id"])
def test_a_missing_or_empty_part_is_refused(path, toy_space, key):
    change(path, 2, **{key: None})
    with pytest.raises(UserError, match=r"journal\.jsonl, line 3 is damaged"):
        Journal(path, toy_space)


def test_another_version_is_refused(path, toy_space):
    change(path, 3, version=2)
    with pytest.raises(UserError, match=r"journal\.jsonl, line 4: format version 2; this program reads version 1"):
        Journal(path, toy_space)


@pytest.mark.parametrize("genome", [[], [0] * 9, [9] * 10, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0], ["a"] * 10, "0000000000"])
def test_a_genome_of_another_space_is_refused(path, toy_space, genome):
    change(path, 1, genome=genome)
    with pytest.raises(UserError, match=r"journal\.jsonl, line 2.*not a genome of this search space"):
        Journal(path, toy_space)


def test_an_id_out_of_order_is_refused(path, toy_space):
    change(path, 2, id=7)
    with pytest.raises(UserError, match=r"journal\.jsonl, line 3 is damaged: id 7, expected 2"):
        Journal(path, toy_space)


def test_what_is_refused_is_left_alone(path, toy_space):
    change(path, 0, version=2)
    before = path.read_bytes() + b'{"torn'
    path.write_bytes(before)
    with pytest.raises(UserError):
        Journal(path, toy_space)
    assert path.read_bytes() == before
