"""Runs `train.py` and `search.py` as a user does, in processes of their own that can be killed.

Importing torch and Lightning takes most of a toy run's time. A fork server imports them once; each script
then runs from its first line in a fork, with its own arguments, directory, environment and output.
"""

import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE_S = 120

# The smallest net and schedule that still have every kind of gene and of step.
TRAINING = (
    "+experiment=smoke",
    "data=text",
    "data.corpus.paths=[text]",
    "data.vocab_size=300",
    "batch_size=4",
    "sequence_length=32",
    "eval_sequences=8",
    "model.context_length=64",
    "model.d_model=[32,64]",
    "model.blocks.mlp.width=[32,64]",
    "model.blocks.mlp.down_formats=[Q4_0,Q5_0,Q8_0,F16]",
    "schedule.alone_steps=12",
    "schedule.joint_steps=60",
    "schedule.smallest_every=4",
    "trainer.checkpoint_every=5",
    "gates.budgets_mb=[0.05]",
)
SEARCH = (
    "budget.size_mb=0.06",
    "n_threads=1",
    "evaluations=24",
    "batch=8",
    "eval_sequences=8",
    "judge_sequences=8",
    "n_measured=2",
    "n_probes=12",
    "n_finalists=2",
    "first_population.random=4",
    "first_population.gate_samples=2",
    "sensitivity.sequences=4",
    "finetune.steps=8",
    "finetune.batch_size=2",
    "finetune.trainer.checkpoint_every=2",
    "targets.llama_cpp.prefill_tokens=8",
    "targets.llama_cpp.decode_tokens=4",
    "targets.llama_cpp.repeats=1",
    "targets.llama_cpp.quantizer=[Q4_K_M]",
)


@dataclass(frozen=True)
class Ended:
    """What a script left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def error(self):
        """Return the message of a refusal that is as it should be, else fail."""
        assert "Traceback" not in self.out + self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and self.code not in (0, None), (self.code, self.out, self.err)
        return lines[0]

    @property
    def fine(self):
        """Return what was printed by a script that succeeded, else fail."""
        assert self.code == 0 and "error:" not in self.err, (self.code, self.err)
        return self.out


class Script:
    """A script that is running."""

    def __init__(self, script, overrides, folder, environment):
        self.log = folder / "logs" / f"{time.monotonic_ns()}"
        self.log.parent.mkdir(exist_ok=True)
        arguments = (str(REPOSITORY / script), overrides, folder, environment, str(self.log))
        self.process = _forks().Process(target=_run, args=arguments, daemon=True)
        self.process.start()

    def kill_when(self, condition, delay_s=0.0):
        """Send SIGKILL `delay_s` after `condition()` holds; return whether the script was still running."""
        wait_for(lambda: self.process.exitcode is not None or condition())
        time.sleep(delay_s)
        self.process.kill()
        return self.end().code == -9

    def interrupt_when(self, condition):
        """Send what Ctrl-C sends after `condition()` holds; return what the script leaves."""
        wait_for(lambda: self.process.exitcode is not None or condition())
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGINT)
        return self.end()

    def end(self):
        """Wait for the end."""
        self.process.join(PATIENCE_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        out, err = (Path(f"{self.log}.{kind}") for kind in ("out", "err"))
        return Ended(self.process.exitcode, *(p.read_text() if p.exists() else "" for p in (out, err)))


@cache
def _forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["search.stage", "search.report", "search.targets.gguf_file", "wandb"])
    return context


def _run(script, overrides, folder, environment, log):
    os.chdir(folder)
    os.environ.update(environment)
    for number, kind in ((1, "out"), (2, "err")):
        with open(f"{log}.{kind}", "w") as file:
            os.dup2(file.fileno(), number)
    exec(environment.get("BEFORE", ""))
    sys.argv = [script, *overrides]
    runpy.run_path(script, run_name="__main__")


class Workplace:
    """A folder with a small corpus, in which scripts are run."""

    def __init__(self, folder):
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.mkdir(parents=True)
        write_corpus(folder / "text")

    def start(self, script, *overrides, **environment):
        return Script(script, overrides, self.folder, environment)

    def kill(self, script, *overrides, when):
        """Start a script anew and kill it once `when()` holds; again, should it have ended before that."""
        for _ in range(5):
            if self.start(script, *overrides, "fresh=true").kill_when(when):
                return
        raise AssertionError("it always ended before the kill")

    def train(self, *overrides, **environment):
        return self.start("train.py", *TRAINING, *overrides, **environment).end()

    def search(self, *overrides, **environment):
        return self.start("search.py", *SEARCH, *overrides, **environment).end()

    @cached_property
    def trained(self):
        """Return a finished run that no test changes."""
        assert "next: python search.py" in self.train("name=trained").fine
        return self.runs / "trained"

    @cached_property
    def searched(self):
        """Return a finished search that no test changes, of a run of its own."""
        run = self.copy_of_trained("searched")
        self.search(f"run={run}").fine  # noqa: B018
        return run / "search" / "main"

    def copy_of_trained(self, name):
        """Return a copy of the finished run that a test may damage."""
        return Path(shutil.copytree(self.trained, self.runs / name))


@cache
def workplace(base):
    """Return the one workplace below pytest's `base` folder, whichever module asks first."""
    return Workplace(base / "workplace")


def wait_for(condition):
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.001)


def write_corpus(folder):
    """Write 60 files, together about 300 kB, that hold the same text every time."""
    rng = random.Random(0)
    words = ["value", "index", "number", "result", "left", "right", "total", "name", "size", "count", "first"]
    folder.mkdir()
    for number in range(60):
        functions = []
        for _ in range(40):
            a, b, c = rng.sample(words, 3)
            text = f'def {a}_{b}({b}, {c}):\n    """Return the {a} of {b} and {c}."""\n'
            functions.append(f"{text}    return {b} + {c} * {rng.randrange(100)}\n")
        (folder / f"module_{number:02}.txt").write_text("\n\n".join(functions))


def contents(folder, *, but=()):
    """Return relative path -> bytes of every file below `folder`, temporary ones of a kill left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files if not path.name.endswith(".tmp")}
    return {name: path.read_bytes() for name, path in names.items() if name not in but}


def read(path):
    return json.loads(path.read_text())


def edit(path, change):
    """Apply `change` to the content of a JSON file."""
    content = read(path)
    change(content)
    path.write_text(json.dumps(content))
