"""Training curves on disk, whatever logger is in use."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning as L

from supernet.claims import leads
from supernet.files import write_text
from supernet.sandwich import Schedule

COLUMNS = ("loss_largest", "loss_smallest", "loss_sampled", "loss_gates", "temperature", "expected_mb")
EVERY = 10  # steps between rows of metrics.csv


class Metrics(L.Callback):
    """Writes metrics.csv and measures tokens per second.

    Rows travel in the checkpoint, so a resumed run has each step once.
    """

    def __init__(self, path: Path, schedule: Schedule, batch_size: int, n_tokens: int) -> None:
        self.path, self.schedule, self.batch_size, self.n_tokens = path, schedule, batch_size, n_tokens
        self.rows: list[dict[str, Any]] = []
        self.seconds = {"alone": 0.0, "joint": 0.0, "gates": 0.0}
        self.latest: dict[str, Any] = {}  # of every value; not every step has each of them
        self._started = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Add a row now and then."""
        step = trainer.global_step - 1
        elapsed = time.perf_counter() - self._started
        kind = self.schedule.kind(step)
        self.seconds[kind] += elapsed
        rows = self.schedule.gate_rows(self.batch_size) if kind == "gates" else self.batch_size
        rate = rows * self.n_tokens / elapsed
        pl_module.log("tokens_per_s", rate, prog_bar=True, batch_size=1)
        self.latest |= {k: v for k, v in trainer.callback_metrics.items() if k in COLUMNS}
        if step % EVERY == 0 or step == self.schedule.steps - 1 or kind == "gates":
            wanted = {"loss_gates", "temperature", "expected_mb"} if kind == "gates" else set(COLUMNS[:3])
            values = {k: round(float(self.latest[k]), 5) for k in COLUMNS if k in self.latest and k in wanted}
            self.rows.append({"step": step, "phase": kind, **values, "tokens_per_s": round(rate)})

    def write(self) -> None:
        """Write metrics.csv, atomically."""
        if not leads():
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, ("step", "phase", *COLUMNS, "tokens_per_s"), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Return rows and times; writing the file here keeps it as fresh as the checkpoint."""
        self.write()
        latest = {k: float(v) for k, v in self.latest.items()}
        return {"rows": self.rows, "seconds": self.seconds, "latest": latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the rows of a checkpoint."""
        self.rows, self.seconds, self.latest = state["rows"], state["seconds"], state["latest"]
