"""`train.py` end to end, at toy size: whatever happens on the way, the same run comes out."""

import csv
import io
import os
import random
import subprocess
import sys

import pytest

from tests.scripts import REPOSITORY, TRAINING, contents, read, workplace

SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.getbasetemp())


def result(run):
    """Return what a training leaves, but for measured times and what names the run."""
    files = contents(run / "supernet", but=("metrics.csv", "summary.json"))
    rows = csv.DictReader(io.StringIO((run / "supernet" / "metrics.csv").read_text()))
    files["metrics.csv"] = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows]
    summary = read(run / "supernet" / "summary.json")
    files["table"], files["flops"] = summary["table"], summary["flops"]
    assert summary["precision"] in ("bf16-mixed", "32-true")
    assert all((phase["seconds"] > 0) == (phase["steps"] > 0) for phase in summary["phases"])
    files["phases"] = [{k: v for k, v in phase.items() if k != "seconds"} for phase in summary["phases"]]
    return files


def steps(run):
    """Return the steps whose checkpoints are there."""
    return sorted(int(path.stem.removeprefix("step=").split("-")[0]) for path in run.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize("script", ["train.py", "search.py"])
def test_help_does_not_wait_for_torch(script, tmp_path):
    command = [sys.executable, "-X", "importtime", REPOSITORY / script, "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    imported = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines()}
    assert ended.returncode == 0 and "seed: 0" in ended.stdout
    assert "hydra" in imported and not imported & {"torch", "lightning", "transformers", "wandb", "numpy"}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_kills_do_not_show(place):
    run, rng = place.runs / "killed", random.Random(3)
    moments = [
        (lambda: (run / ".lock").exists(), 0.05),
        (lambda: (run / "config.yaml").exists(), 0.1),
        *((lambda least=least: steps(run)[-1:] >= [least], 0.1) for least in (5, 10, 20, 30, 35)),
        (lambda: (run / "supernet" / "model.safetensors").exists(), 0.02),
    ]
    kills = 0
    for condition, delay in moments:
        script = place.start("train.py", *TRAINING, "name=killed")
        kills += script.kill_when(condition, rng.uniform(0, delay))
    assert kills >= 6
    place.train("name=killed").fine  # noqa: B018
    assert result(run) == result(place.trained)


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(place):
    run = place.runs / "interrupted"
    for _ in range(5):
        script = place.start("train.py", *TRAINING, "name=interrupted", "fresh=true")
        ended = script.interrupt_when(lambda: steps(run)[-1:] >= [10])
        if ended.code != 0:  # else it was done before the signal came
            break
    assert ended.error == "error: interrupted; the same command goes on from the last checkpoint"
    assert ended.code == 130
    place.train("name=interrupted").fine  # noqa: B018
    assert result(run) == result(place.trained)


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(place):
    run = place.runs / "damaged"
    place.kill("train.py", *TRAINING, "name=damaged", when=lambda: steps(run)[-1:] >= [15])
    newest = max(run.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert f"{newest.name} is damaged" in place.train("name=damaged").fine
    assert result(run) == result(place.trained)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_state(place):
    run = place.runs / "full"
    place.kill("train.py", *TRAINING, "name=full", when=lambda: len(steps(run)) >= 2)
    kept = contents(run / "checkpoints")
    ended = place.train("name=full", BEFORE=SMALL_FILES.format(200_000))
    assert "File too large" in ended.error and "what was written before is kept" in ended.error
    assert contents(run / "checkpoints").items() >= kept.items()
    place.train("name=full").fine  # noqa: B018
    assert result(run) == result(place.trained)


@pytest.mark.slow
def test_a_full_disk_at_the_end_leaves_no_run_that_looks_finished(place):
    overrides = ("name=full_at_the_end", "trainer.checkpoint_every=1000")
    ended = place.train(*overrides, BEFORE=SMALL_FILES.format(200_000))
    assert "File too large" in ended.error
    assert "has not finished" in place.search("run=runs/full_at_the_end").error
    place.train(*overrides).fine  # noqa: B018
    assert result(place.runs / "full_at_the_end") == result(place.trained)


@pytest.mark.slow
def test_a_loss_that_explodes_is_said(place):
    assert "lower optimizer.lr" in place.train("name=exploded", "optimizer.lr=1e30").error
    assert not (place.runs / "exploded" / "supernet" / "summary.json").exists()


@pytest.mark.slow
def test_a_finished_run(place):
    run = place.copy_of_trained("finished")
    before = contents(run)
    config = (run / "config.yaml").read_text().replace("name: trained", "name: finished")
    (run / "config.yaml").write_text(config)
    out = place.train("name=finished").fine
    assert "runs/finished is finished" in out and "fresh=true trains it again" in out
    assert "begun with other settings (seed)" in place.train("name=finished", "seed=1").error
    two = place.train("name=finished", "seed=1", "schedule.joint_steps=3").error
    assert "(schedule.joint_steps, seed)" in two
    # A mistake beside it must not cost the run.
    assert "batch_size" in place.train("name=finished", "fresh=true", "batch_size=0").error
    assert "nowhere" in place.train("name=finished", "fresh=true", "data.corpus.paths=[nowhere]").error
    assert contents(run, but=["config.yaml"]) == {k: v for k, v in before.items() if k != "config.yaml"}

    place.train("name=finished", "fresh=true", "seed=1").fine  # noqa: B018
    assert "seed: 1" in (run / "config.yaml").read_text()
    assert result(run)["model.safetensors"] != result(place.trained)["model.safetensors"]
    assert result(run)["tokenizer.json"] == result(place.trained)["tokenizer.json"]


@pytest.mark.slow
def test_a_kill_while_starting_over_leaves_the_run_it_was(place):
    run = place.runs / "half_deleted"
    place.train("name=half_deleted").fine  # noqa: B018
    killed = "import os, shutil; shutil.rmtree = lambda folder: os.kill(os.getpid(), 9)"
    assert place.train("name=half_deleted", "seed=1", "fresh=true", BEFORE=killed).code == -9
    assert "has not finished" in place.search("run=runs/half_deleted").error
    assert "begun with other settings (seed)" in place.train("name=half_deleted", "seed=1").error
    place.train("name=half_deleted").fine  # noqa: B018
    assert result(run) == result(place.trained)


@pytest.mark.slow
def test_an_unfinished_run(place):
    run = place.runs / "unfinished"
    place.kill("train.py", *TRAINING, "name=unfinished", when=lambda: steps(run)[-1:] >= [10])
    assert "begun with other settings (optimizer.lr)" in place.train("name=unfinished", "optimizer.lr=0.1").error
    place.train("name=unfinished", "fresh=true").fine  # noqa: B018
    assert result(run) == result(place.trained)


@pytest.mark.slow
def test_a_sweep_with_weights_and_biases_as_typed_in_a_shell(place):
    command = [sys.executable, REPOSITORY / "train.py", "-m", *TRAINING, "seed=0,1", "name=swept", "logger=wandb"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST"))}
    ended = subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    runs = sorted(path.name for path in place.runs.glob("swept*"))
    assert runs == ["swept_seed=0", "swept_seed=1"]
    for name in runs:
        assert f"next: python search.py 'run=\"runs/{name}\"' " in ended.stdout
        assert list((place.runs / name / "wandb").glob("offline-run-*/run-*.wandb"))
    assert result(place.runs / "swept_seed=0") == result(place.trained)
    assert result(place.runs / "swept_seed=1") != result(place.trained)


@pytest.mark.slow
def test_a_run_goes_on_from_another(place):
    trunk = place.trained
    before = read(trunk / "supernet" / "summary.json")
    short = ("schedule.alone_steps=2", "schedule.joint_steps=0", "optimizer.lr=1e-9")
    place.train("name=branch", f"model.init={trunk}", *short, "model.scales.Q4_0=learned").fine  # noqa: B018
    summary = read(place.runs / "branch" / "supernet" / "summary.json")
    assert summary["flops_before"] == before["flops"] and before["flops_before"] == 0
    assert before["ordered_on"] > summary["ordered_on"] == 0  # nothing is ordered where nothing is joint
    losses = [each["table"][0]["valid_loss"] for each in (before, summary)]
    shown = [any("gates" in row["name"] for row in each["table"]) for each in (before, summary)]
    assert shown == [True, False]  # gates that nobody trained prefer nothing
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # two steps that hardly move
    assert "init" not in read(place.runs / "branch" / "supernet" / "space.json")["model"]

    refusals = {
        "model.init=runs/nowhere": "model.init: runs/nowhere does not exist",
        "model.n_layers=3": "another shape; model and model.blocks must agree",
        "data.vocab_size=280": "another tokenizer; set data.tokenizer_file",
        "model.rope_theta=5e5": "other values of model.rope_theta",
        "model.norm_eps=1e-3": "other values of model.norm_eps: 1e-05, here 0.001",
    }
    for override, message in refusals.items():
        assert message in place.train("name=other", f"model.init={trunk}", *short, override).error
    assert not (place.runs / "other").exists()
    own = place.train(f"name={trunk.name}", f"model.init={trunk}", "fresh=true").error
    assert f"fresh=true would delete model.init={trunk} first" in own
    assert read(trunk / "supernet" / "summary.json") == before
