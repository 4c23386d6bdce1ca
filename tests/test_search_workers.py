"""`search.py` with workers: whoever dies, and wherever candidates are scored, the journal is the same."""

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from supernet.files import read_json
from tests.scripts import SEARCH, wait_for, workplace

pytestmark = pytest.mark.slow
# Long enough for kills to meet it in the middle; what comes after the journal is tested elsewhere.
SETTINGS = (
    *SEARCH,
    "evaluations=120",
    "eval_sequences=64",
    "hurdles=default",
    "finetune.steps=0",
    "n_finalists=1",
    "n_measured=1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def undisturbed(place):
    """Return the journal of a search in one process."""
    run = place.searched.parents[1]
    place.start("search.py", *SETTINGS, f"run={run}", "search=undisturbed").end().fine  # noqa: B018
    return (run / "search" / "undisturbed" / "journal.jsonl").read_bytes()


def workers_of(script):
    """Return the process ids of a search's workers, which carry its process id in their environment."""
    mark, found = f"SEARCH_PID={script.process.pid}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes() + b"\0":
                found.append(int(path.parent.name))
    return found


def n_lines(search):
    path = search / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="workers are found through /proc")
@pytest.mark.parametrize("workers", ["2", "ray"])
def test_killed_workers_do_not_show(place, undisturbed, workers):
    if workers == "ray":
        pytest.importorskip("ray")
    run, name = place.searched.parents[1], f"workers_{workers}"
    search, rng = run / "search" / name, random.Random(7)
    script = place.start("search.py", *SETTINGS, f"run={run}", f"search={name}", f"workers={workers}")
    killed, moments = set(), 0

    def alive():
        return set(workers_of(script)) - killed

    for least in sorted(rng.sample(range(100), 5)):
        wait_for(lambda least=least: script.process.exitcode is not None or n_lines(search) >= least)
        wait_for(lambda: script.process.exitcode is not None or alive())
        victims = alive()
        for victim in victims:  # all of them: the search cannot end before others have started
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        killed |= victims
        moments += bool(victims)
    script.end().fine  # noqa: B018
    assert moments == 5
    assert (search / "journal.jsonl").read_bytes() == undisturbed
    wait_for(lambda: not workers_of(script))


def test_a_search_goes_on_with_other_workers(place, undisturbed):
    run = place.searched.parents[1]
    search, overrides = run / "search" / "moved", (*SETTINGS, f"run={run}", "search=moved")
    for workers, least in (("2", 30), ("1", 70)):
        script = place.start("search.py", *overrides, f"workers={workers}")
        assert script.kill_when(lambda least=least: n_lines(search) >= least)
        wait_for(lambda script=script: not workers_of(script))  # none outlives the search
    place.start("search.py", *overrides, "workers=3", "worker_timeout_s=99").end().fine  # noqa: B018
    assert (search / "journal.jsonl").read_bytes() == undisturbed


def test_workers_fine_tune_the_same_finalists(place):
    run, shipped = place.searched.parents[1], []
    quick = (*SEARCH, f"run={run}", "evaluations=20", "n_finalists=2", "n_measured=1")
    for workers in (1, 2):
        search = run / "search" / f"tuned_by_{workers}"
        place.start("search.py", *quick, f"search={search.name}", f"workers={workers}").end().fine  # noqa: B018
        shipped.append(
            {path.parent.name: read_json(path)["weights_sha256"] for path in search.glob("export/*/manifest.json")}
        )
        assert all(entry["fine_tuned"] for entry in finalists(search))
    assert shipped[0] == shipped[1] and len(shipped[0]) == 2


def finalists(search):
    return [e for entries in read_json(search / "finalists.json")["targets"].values() for e in entries["finalists"]]
