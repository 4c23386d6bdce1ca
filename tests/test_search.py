"""`search.py` end to end, at toy size: whatever happens on the way, the same search comes out."""

import json
import random
import re
import shutil

import pytest

from tests.scripts import SEARCH, contents, edit, read, workplace

pytestmark = pytest.mark.slow

SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
NO_LLAMA_CPP = "import sys; sys.modules['llama_cpp'] = None"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.getbasetemp())


def unmeasured(content):
    """Return JSON without measured times and without the command, which names the search."""
    if isinstance(content, dict):
        return {k: unmeasured(v) for k, v in content.items() if k not in ("measured", "command")}
    return [unmeasured(item) for item in content] if isinstance(content, list) else content


def result(search):
    """Return what a search leaves, but for measured times, checkpoints, pictures of them, and its name."""
    files = contents(search, but=("config.yaml", "report.html", ".lock"))
    kept = {name: content for name, content in files.items() if not re.search(r"checkpoints/|\.png$", name)}
    for name in kept:
        if name.endswith(".json"):
            kept[name] = unmeasured(read(search / name))
    return kept


def candidates(search):
    """Return what the journal holds; a line that is being written is none yet."""
    path = search / "journal.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def n_files(search, pattern):
    return len(list(search.glob(pattern)))


def test_kills_do_not_show(place):
    run, rng = place.searched.parents[1], random.Random(5)
    search = place.searched.with_name("killed")
    moments = [
        (lambda: (search / ".lock").exists(), 0.05),
        (lambda: (search / "sensitivity.parts.json").exists(), 0.2),
        *((lambda least=least: len(candidates(search)) >= least, 0.01) for least in (1, 7, 15)),
        (lambda: len(candidates(search)) == 24, 0.5),
        (lambda: (search / "front.parts.json").exists(), 0.1),
        (lambda: (search / "front.json").exists(), 0.1),
        (lambda: n_files(search, "nets/*/checkpoints/*.ckpt") >= 1, 0.1),
        (lambda: n_files(search, "nets/*/model.safetensors") >= 2, 0.1),
        (lambda: n_files(search, "export/*/model.gguf") >= 1, 0.1),
        (lambda: n_files(search, "export/*/manifest.json") >= 2, 0.3),
        (lambda: n_files(search, "nets/*/entry.json") >= 5, 0.2),
        (lambda: (search / "finalists.json").exists(), 0.1),
    ]
    kills = 0
    for condition, delay in moments:
        script = place.start("search.py", *SEARCH, f"run={run}", "search=killed")
        kills += script.kill_when(condition, rng.uniform(0, delay))
    assert kills >= 8
    place.search(f"run={run}", "search=killed").fine  # noqa: B018
    assert result(search) == result(place.searched)


def test_a_search_is_complete(place):
    assert [candidate["id"] for candidate in candidates(place.searched)] == list(range(24))
    finalists = read(place.searched / "finalists.json")["targets"]["llama_cpp"]
    *baselines, own = finalists["baselines"]
    assert len(finalists["finalists"]) == 2 and len(baselines) == 5
    assert not n_files(place.searched, "nets/*/checkpoints")
    assert own["name"] == "llama.cpp Q4_K_M" and own["measured"]["size_mb"] == own["scores"]["size_mb"]
    judged, whole = own["fine_tuned"] or own["inherited"], baselines[0]
    assert judged.keys() == whole["inherited"].keys() and own["scores"]["size_mb"] < whole["scores"]["size_mb"]
    assert judged["test_loss"] == pytest.approx(whole["inherited"]["test_loss"], rel=0.1)
    for entry in [*finalists["finalists"], *baselines]:
        theirs = entry["runtime_test"]
        assert entry["measured"]["built"] and entry["sample"].startswith("def ")
        assert theirs["loss"] == pytest.approx(theirs["our_loss"], abs=0.005)
        assert entry["fine_tuned"]["test_loss"] != entry["inherited"]["test_loss"]
        by_slice = entry["fine_tuned"]["slice_losses"]
        assert max(by_slice.values()) >= entry["fine_tuned"]["test_loss"] and all(by_slice)
    for entry in finalists["finalists"]:
        assert entry["scores"]["size_mb"] <= 0.06
        folder = place.searched / entry["export"]
        assert {"model.gguf", "hf/model.safetensors", "hf/config.json", "manifest.json"} <= contents(folder).keys()
        assert read(folder / "manifest.json")["weights"] == "fine-tuned"
    front = read(place.searched / "front.json")["targets"]["llama_cpp"]
    assert sum(entry["measured"] is not None for entry in front) == 2
    assert "<html" in (place.searched / "report.html").read_text()


def test_a_torn_line_is_dropped_and_a_damaged_one_refused(place):
    run = place.copy_of_trained("torn")
    search = run / "search" / "main"
    place.kill("search.py", *SEARCH, f"run={run}", when=lambda: len(candidates(search)) >= 10)
    journal = search / "journal.jsonl"
    whole = journal.read_bytes().splitlines(keepends=True)[:9]

    journal.write_bytes(b"".join([*whole[:4], b'{"version":1,\n', *whole[5:]]))
    assert "journal.jsonl, line 5 is damaged" in place.search(f"run={run}").error
    journal.write_bytes(b"".join([whole[0], whole[2], whole[1]]))
    assert "journal.jsonl, line 2 is damaged" in place.search(f"run={run}").error
    journal.write_bytes(b"".join(whole).replace(b'"version":1', b'"version":7'))
    assert "line 1: format version 7" in place.search(f"run={run}").error

    journal.write_bytes(b"".join([*whole, whole[0][:50]]))
    place.search(f"run={run}").fine  # noqa: B018
    assert journal.read_bytes() == (place.searched / "journal.jsonl").read_bytes()


def test_a_finished_search(place):
    run = f"run={place.searched.parents[1]}"
    before = contents(place.searched)
    out = place.search(run).fine
    assert "main is finished; fresh=true searches again" in out and "export=" in out
    assert "begun with other settings (seed)" in place.search(run, "seed=1").error
    assert "(budget.size_mb, evaluations)" in place.search(run, "evaluations=30", "budget.size_mb=0.07").error
    # A mistake beside it must not cost the search.
    assert "finetune" in place.search(run, "fresh=true", "finetune.steps=-1").error
    copy = place.searched / "hardware.json"
    copy.touch()
    elsewhere = "targets.llama_cpp.hardware=nowhere.json"
    assert "nowhere.json does not exist" in place.search(run, "fresh=true", elsewhere).error
    copy.unlink()
    assert contents(place.searched) == before


def test_an_unfinished_search_and_a_fresh_one(place):
    run = place.searched.parents[1]
    search, quick = run / "search" / "quick", (f"run={run}", "search=quick", "finetune.steps=0", "n_finalists=1")
    place.kill("search.py", *SEARCH, *quick, when=lambda: len(candidates(search)) >= 5)
    assert "begun with other settings (seed)" in place.search(*quick, "seed=1").error
    assert "begun with other settings" in place.search(*quick[:3]).error
    place.search(*quick, "seed=1", "fresh=true").fine  # noqa: B018
    assert all(candidate["lineage"]["seed"] == 1 for candidate in candidates(search))
    assert not list(search.glob("nets/*/model.safetensors"))
    manifest = read(next(search.glob("export/*/manifest.json")))
    assert manifest["weights"] == "inherited" and manifest["quality"]["fine_tuned"] is None


def test_fine_tuning_that_fails_costs_no_search(place):
    run = place.copy_of_trained("retuned")
    search, options = run / "search" / "main", (f"run={run}", "n_finalists=1", "finetune.baselines=false")
    options += ("finetune.trainer.checkpoint_every=1",)
    assert "lower finetune.lr" in place.search(*options, "finetune.lr=1e30").error
    journal = (search / "journal.jsonl").read_bytes()
    assert "begun with other settings (seed)" in place.search(*options, "seed=1").error
    out = place.search(*options, "finetune.lr=10").fine
    assert "finetune.lr: changed, so all fine-tuning begins again" in out
    (finalist,) = read(search / "finalists.json")["targets"]["llama_cpp"]["finalists"]
    tuned = finalist["fine_tuned"]  # none where the loss became infinite or no number, as it does on some processors
    did = "took its loss on valid from" if tuned else "ended in losses that are no numbers"
    assert f"{finalist['name']}: fine-tuning {did}" in out
    assert tuned is None or tuned["valid_loss"] > finalist["inherited"]["valid_loss"]
    manifest = read(search / finalist["export"] / "manifest.json")
    assert manifest["weights"] == "inherited"
    assert finalist["runtime_test"]["loss"] == pytest.approx(finalist["runtime_test"]["our_loss"], abs=1e-2)
    place.search(*options, "finetune.lr=10", f"export={finalist['id']}").fine  # noqa: B018
    assert read(search / finalist["export"] / "manifest.json")["weights_sha256"] == manifest["weights_sha256"]
    assert (search / "journal.jsonl").read_bytes() == journal
    assert "begun with other settings (finetune.lr)" in place.search(*options, "finetune.lr=1").error


def test_a_full_disk_keeps_what_was_found(place):
    run = place.copy_of_trained("full_search")
    search = run / "search" / "main"
    ended = place.search(f"run={run}", BEFORE=SMALL_FILES.format(100_000))
    assert "File too large" in ended.error and "what was written before is kept" in ended.error
    assert len(candidates(search)) == 24 and not (search / "report.html").exists()
    place.search(f"run={run}").fine  # noqa: B018
    assert result(search) == result(place.searched)


def test_without_llama_cpp_the_report_says_how_to_get_it(place):
    run = place.copy_of_trained("no_llama_cpp")
    out = place.search(f"run={run}", BEFORE=NO_LLAMA_CPP).fine
    search = run / "search" / "main"
    assert "pip install -e '.[gguf]'" in (search / "report.html").read_text().replace("&#x27;", "'")
    finalists = read(search / "finalists.json")["targets"]["llama_cpp"]["finalists"]
    assert [entry["measured"] for entry in finalists] == [None, None] and "export=" in out
    names = {name for name in result(place.searched) if name.startswith("export/")}
    assert names <= result(search).keys()
    for name in names:
        assert name.endswith("manifest.json") or result(search)[name] == result(place.searched)[name]


def test_export_of_any_candidate(place):
    run = place.copy_of_trained("exported")
    shutil.copytree(place.searched, run / "search" / "main")
    search = run / "search" / "main"
    before = contents(search)
    finalists = {path.name for path in search.glob("export/*")}
    chosen = next(c for c in candidates(search) if c["lineage"]["parents"])
    assert str(chosen["id"]) not in finalists
    out = place.search(f"run={run}", f"export={chosen['id']}").fine
    folder = search / "export" / str(chosen["id"])
    for name in ("model.gguf", "hf", "manifest.json"):
        assert (folder / name).exists() and str(folder / name) in out
    manifest = read(folder / "manifest.json")
    assert manifest["genome"] == chosen["genome"] and manifest["scores"] == chosen["scores"]
    assert manifest["lineage"] == chosen["lineage"] and manifest["weights"] == "inherited"
    assert manifest["architecture"].keys() == {g["name"] for g in read(run / "supernet" / "space.json")["genes"]}
    assert manifest["corpus"] == read(run / "supernet" / "data.json")["hash"]
    assert "torch" in manifest["versions"] and f"export={chosen['id']}" in manifest["command"]
    assert {name: content for name, content in contents(search).items() if name in before} == before

    # A finalist is shipped with its fine-tuned weights, byte for byte as the search shipped it.
    finalist = min(finalists)
    shutil.rmtree(search / "export" / finalist)
    place.search(f"run={run}", f"export={finalist}").fine  # noqa: B018
    again = contents(search / "export" / finalist, but=["manifest.json"])
    assert again == contents(place.searched / "export" / finalist, but=["manifest.json"])
    assert read(search / "export" / finalist / "manifest.json")["weights"] == "fine-tuned"


def test_a_missing_token_cache_is_built_again(place):
    run = place.copy_of_trained("uncached")
    edit(run / "supernet" / "data.json", lambda data: data["config"].update(cache_dir="another_cache"))
    place.search(f"run={run}", "finetune.steps=0", "n_finalists=1").fine  # noqa: B018
    assert list((place.folder / "another_cache").iterdir())
    journal = (run / "search" / "main" / "journal.jsonl").read_bytes()
    assert journal == (place.searched / "journal.jsonl").read_bytes()


TARGETS = ("llama_cpp", "llama_cpp_q8_kv")
MEASURED = (
    f"target=[{','.join(TARGETS)}]",
    *(f"targets.{TARGETS[1]}.{key}" for key in ("prefill_tokens=8", "decode_tokens=4", "repeats=1", "quantizer=[]")),
    "objective=[loss,size_mb,decode_ms]",
    "budget.decode_ms=9",
    "hurdles.levels=[{sequences: 2, keep: 0.5}]",
    "n_probes=6",
    "finetune.steps=0",
    "n_finalists=1",
)


def test_hardware_is_measured_once_for_several_targets(place):
    run = place.searched.parents[1]
    search, again = (run / "search" / name for name in ("measured", "again"))

    def probes(target):
        path = search / "hardware.json"
        return read(path)["targets"].get(target, {"probes": []})["probes"] if path.exists() else []

    moments = (lambda: len(probes(TARGETS[0])) >= 2, lambda: probes(TARGETS[1]), lambda: len(candidates(search)) >= 9)
    for moment in moments:
        known = probes(TARGETS[0])
        assert place.start("search.py", *SEARCH, *MEASURED, f"run={run}", "search=measured").kill_when(moment)
        assert probes(TARGETS[0])[: len(known)] == known
    out = place.search(*MEASURED, f"run={run}", "search=measured").fine
    fronts, finalists = (read(search / f"{name}.json")["targets"] for name in ("front", "finalists"))
    for target in TARGETS:
        assert target in out.replace("\n", "")
        for entry in [*fronts[target], *finalists[target]["finalists"]]:
            costs = read(search / "hardware.json")["targets"][target]
            assert entry["scores"][f"decode_ms@{target}"] == entry["predicted"]["decode_ms"] > 0
            assert entry["predicted"].keys() >= costs["coefficients"].keys()
            assert entry["stopped"] is None if "stopped" in entry else entry["export"]
        assert any(entry["measured"] and entry["measured"]["built"] for entry in fronts[target])
    assert {c["stopped"] for c in candidates(search)} == {None, "hurdle 1"}

    # What was measured decides everything else: with the same hardware.json the same search comes out.
    again.mkdir()
    shutil.copy(search / "hardware.json", again)
    place.search(*MEASURED, f"run={run}", "search=again", "workers=2").fine  # noqa: B018
    assert (again / "journal.jsonl").read_bytes() == (search / "journal.jsonl").read_bytes()


def test_a_weighted_sum_of_scores(place):
    run = place.searched.parents[1]
    weights = ("evolution.fitness.loss=1", "evolution.fitness.kv_bytes_per_token=0.001", "evolution.fitness.error=2")
    quick = (
        "finetune.steps=0",
        "n_finalists=2",
        "budget.quantization_loss=0.5",
        "objective=[worst_slice_loss,size_mb]",
    )
    place.search(*weights, *quick, f"run={run}", "search=weighted").fine  # noqa: B018
    search = run / "search" / "weighted"

    def fitness(entry):
        scores = entry["scores"]
        return scores["loss"] + 0.001 * scores["kv_bytes_per_token"] + 2 * scores["error"]

    ranked = sorted((c for c in candidates(search) if c["feasible"]), key=fitness)
    finalists = read(search / "finalists.json")["targets"]["llama_cpp"]["finalists"]
    assert [fitness(entry) for entry in finalists] == [fitness(c) for c in ranked[:2]]
    assert not (search / "hardware.json").exists()


def test_a_sweep_of_searches(place):
    run = place.copy_of_trained("sweep")
    quick = (f"run={run}", "seed=0,1", "finetune.steps=0", "n_finalists=1")
    place.start("search.py", "-m", *SEARCH, *quick).end().fine  # noqa: B018
    assert sorted(path.name for path in (run / "search").iterdir()) == ["main_seed=0", "main_seed=1"]
    journals = [(path / "journal.jsonl").read_bytes() for path in sorted((run / "search").iterdir())]
    assert journals[0] == (place.searched / "journal.jsonl").read_bytes() != journals[1]
