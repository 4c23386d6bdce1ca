"""Does the supernet rank truly? Inherited loss against the loss of the same nets trained alone.

`python benchmarks/ranking.py` draws 8 nets in each of 3 bins of equal bytes (within 3 %) as the training of
runs/llama_like draws them (spread over the levels above its `schedule.floor`), no two of a bin with the same structure
or the same formats, and trains each alone from fresh weights: the same batches for all, quantization-aware in its own
formats, next-token loss. Both losses are of the same rows of the `valid` split, with rounded weights. Rank correlations
are taken within bins, because over a wide range of sizes the number of parameters alone ranks almost perfectly; beside
them stand the predictors that know only the number of weights, or of bytes.

Each stand-alone loss is kept in cache/ranking/ as soon as it is known: the same command goes on where it stopped,
with more seeds or more nets in a bin it trains only what is new. Several runs (supernets of other seeds over the
same space) and several seeds are compared each with each. Writes docs/results/NAME.json, .md and .png.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from common import RESULTS, ROOT, record, recorded
from omegaconf import OmegaConf
from ranks import compare, draw, markdown
from torch import Tensor

from supernet.cli import progress
from supernet.config import build
from supernet.data import TokenData
from supernet.files import read_json, write_json, write_text
from supernet.fitting import Batches, fit
from supernet.formats import MB
from supernet.genes import Genome, Kind
from supernet.losses import best_device, evaluate, next_token_loss
from supernet.model import Supernet
from supernet.randomness import derive, generator
from supernet.run import SPACE, build_supernet, load_supernet
from supernet.subnet import Decoder, extract
from supernet.training import parameter_groups

CACHE = ROOT / "cache" / "ranking"
RECIPE = 1  # raised whenever the same settings would train other nets
DRAWS = 300_000  # for a bin, before it counts as out of the space's reach
WARMUP, FINAL_LR = 0.05, 0.1  # share of the steps in which the learning rate rises; last over highest


@dataclass(frozen=True)
class Cell:
    """One net to be trained alone: what its loss depends on, the run's own settings aside."""

    genome: Genome
    seed: int
    steps: int
    batch_size: int
    sequences: int


class Trainer:
    """Trains nets alone on the data, in the space and with the optimizer of a run."""

    def __init__(self, run: Path, data: TokenData) -> None:
        self.data = data
        self.model = read_json(run / "supernet" / SPACE)["model"]
        self.config: Any = OmegaConf.load(run / "config.yaml")
        self.length = int(self.config.sequence_length)

    def path(self, cell: Cell) -> Path:
        """Return the file that keeps the cell's loss."""
        decides: dict[str, Any] = {**asdict(cell), "recipe": RECIPE, "model": self.model, "corpus": self.data.hash}
        decides |= {key: OmegaConf.to_container(self.config[key]) for key in ("optimizer", "trainer")}
        text = json.dumps({**decides, "length": self.length}, sort_keys=True)
        return CACHE / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def train(self, cell: Cell) -> None:
        """Train a net from fresh weights and keep its loss."""
        started, path = time.perf_counter(), self.path(cell)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(cell.seed, "ranking", "weights"))
            fresh = build_supernet(self.model, self.data.vocab_size)
        decoder = extract(fresh, fresh.space.check(cell.genome))
        seed = derive(cell.seed, "ranking", "batches")
        batches = Batches(self.data, cell.steps, lambda _: "train", seed, cell.batch_size, self.length)
        settings: Any = OmegaConf.to_container(self.config.trainer)
        checkpoints = path.with_suffix("")
        fit(_Alone(decoder, build(self.config.optimizer), cell.steps), batches, checkpoints, settings, "alone")
        loss = valid_loss(decoder, self.data, cell.sequences, self.length)
        write_json(path, {**asdict(cell), "loss": loss, "seconds": round(time.perf_counter() - started, 1)})
        shutil.rmtree(checkpoints, ignore_errors=True)


class _Alone(L.LightningModule):
    def __init__(self, decoder: Decoder, make_optimizer: Any, steps: int) -> None:
        super().__init__()
        self.decoder, self.make_optimizer, self.steps = decoder, make_optimizer, steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.make_optimizer(parameter_groups(self.decoder))
        self.highest_lr = optimizer.param_groups[0]["lr"]
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step, warmup = self.global_step, max(1, round(WARMUP * self.steps))
        done = max(0, step - warmup) / max(1, self.steps - warmup)
        cosine = FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.highest_lr * min((step + 1) / warmup, cosine)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return next_token_loss(self.decoder(batch[:, :-1]), batch[:, 1:])


def valid_loss(decoder: Decoder, data: TokenData, sequences: int, length: int) -> float:
    """Return the loss on the `valid` split, weights rounded to their formats."""
    device = best_device()
    rows = data.evaluation_batch("valid", sequences, length).to(device)
    return evaluate(decoder.to(device).eval().freeze_formats(), rows, 16)[0]


def draw_bin(supernet: Supernet, floor: Mapping[Kind, float], size_mb: float, tolerance: float, n: int) -> list[Genome]:
    """Return the first `n` genomes of about that size whose structures and whose formats are all different."""
    space, rng = supernet.space, generator(0, "ranking", round(1e6 * size_mb))
    formats = [gene.kind == "format" for gene in space]
    seen: set[tuple[bool, Genome]] = set()
    found: list[Genome] = []
    for _ in range(DRAWS):
        genome = space.sample_spread(rng, floor)
        size = float(supernet.n_bytes(space.decode(genome))) / MB
        if abs(size / size_mb - 1) > tolerance:
            continue
        both = {(part, tuple(i for i, f in zip(genome, formats, strict=True) if f == part)) for part in (False, True)}
        if not both & seen:
            seen |= both
            found.append(genome)
        if len(found) == n:
            return found
    raise SystemExit(f"only {len(found)} of {n} nets of {size_mb:.3f} MB found in {DRAWS:,} draws; choose other --bins")


_trainer: Trainer  # of a worker process


def _start_worker(run: Path, n_threads: int) -> None:
    global _trainer
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(n_threads)
    _trainer = Trainer(run, load_supernet(run).tokens())


def _end_with(parent: int) -> None:
    """End this process when its parent was killed: the command that goes on trains the same net."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _train_cell(cell: Cell) -> None:
    _trainer.train(cell)


def train_all(run: Path, cells: Sequence[Cell], workers: int) -> None:
    """Train what is not known yet, in processes of their own."""
    if not cells:
        return
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: one bar is enough
    n_threads = max(1, torch.get_num_threads() // workers)  # OMP_NUM_THREADS holds
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(run, n_threads))
    with pool, progress(total=len(cells), desc="nets trained alone", unit="net") as bar:
        try:
            for done in as_completed([pool.submit(_train_cell, cell) for cell in cells]):
                done.result()
                bar.update()
        except BaseException:  # what is kept is kept; do not train all the others first
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> None:
    """Draw the nets, train what is missing, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", default=[ROOT / "runs" / "llama_like"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bins", type=float, nargs="+", default=[0.17, 0.237, 0.35], help="shares of the largest")
    parser.add_argument("--per-bin", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=128, help="of `valid`")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", default="ranking", help="of docs/results/NAME.json")
    arguments = parser.parse_args()
    if arguments.per_bin < 2:
        parser.error("--per-bin must be 2 or more")

    free = ("run", "seeds", "per_bin", "workers", "name")  # more seeds or nets go on with what there is
    settings = {key: value for key, value in vars(arguments).items() if key not in free}
    settings["runs"] = [run.resolve().name for run in arguments.run]
    recorded(arguments.name, settings)  # what may not be written had better not be run
    runs = [load_supernet(run) for run in arguments.run]
    supernet, data = runs[0].supernet, runs[0].tokens()
    if any(r.supernet.space.to_json() != supernet.space.to_json() or r.data["hash"] != data.hash for r in runs):
        parser.error("--run: the runs must share space and corpus")
    largest = float(supernet.n_bytes(supernet.space.decode(supernet.space.largest))) / MB
    bins = [share * largest for share in sorted(arguments.bins)]
    trainer = Trainer(arguments.run[0], data)
    floor = trainer.config.schedule.get("floor", {})
    nets = [(b, g) for b in bins for g in draw_bin(supernet, floor, b, arguments.tolerance, arguments.per_bin)]

    decisive = {key: settings[key] for key in ("steps", "batch_size", "sequences")}
    cells = {(genome, seed): Cell(genome, seed, **decisive) for _, genome in nets for seed in arguments.seeds}
    missing = [cell for cell in cells.values() if not trainer.path(cell).exists()]
    print(f"{len(cells)} nets to train alone, {len(cells) - len(missing)} of them known already")
    train_all(arguments.run[0], missing, arguments.workers)

    rows = []
    for size_mb, genome in nets:
        alone = [read_json(trainer.path(cells[genome, seed])) for seed in arguments.seeds]
        decoder = extract(supernet, genome)
        rows.append(
            {
                "bin": size_mb,
                "genome": list(genome),
                "size_mb": float(supernet.n_bytes(supernet.space.decode(genome))) / MB,
                "weights": sum(linear.weight.numel() for linear in decoder.linears()),
                "inherited": [
                    valid_loss(extract(r.supernet, genome), data, arguments.sequences, trainer.length) for r in runs
                ],
                "alone": [a["loss"] for a in alone],
                "seconds": [a["seconds"] for a in alone],
            }
        )
    tokens = arguments.steps * arguments.batch_size * trainer.length
    compared = compare(rows, len(runs), len(arguments.seeds))
    result = {"settings": settings, "seeds": arguments.seeds, "tokens_alone": tokens, **compared, "rows": rows}
    record(arguments.name, result)
    write_text(RESULTS / f"{arguments.name}.md", markdown(result))
    draw(result, RESULTS / f"{arguments.name}.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
