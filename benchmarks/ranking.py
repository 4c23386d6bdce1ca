"""Does the supernet rank truly? Inherited loss against the loss of the same nets trained alone.

`python benchmarks/ranking.py` draws 8 nets in each of 3 bins of equal bytes (within 3 %) as the training of
runs/llama_like draws them (spread over the levels above its `schedule.floor`), no two of a bin with the same structure
or the same formats, and trains each alone from fresh weights: the same batches for all, quantization-aware in its own
formats, next-token loss. Both losses are of the same rows of the `valid` split, with rounded weights. Rank correlations
are taken within bins, because over a wide range of sizes the number of parameters alone ranks almost perfectly; beside
them stand the predictors that know only the number of weights, or of bytes. With `--tune-steps` there is one more: the
loss after so many steps of the fine-tuning that finalists get (conf/finetune/), from the inherited weights on.

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
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from common import RESULTS, ROOT, compose, record, recorded
from omegaconf import OmegaConf
from ranks import compare, draw, markdown
from torch import Tensor

from search.finetune import FineTuning
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
from supernet.subnet import Decoder, extract, weights_hash
from supernet.training import parameter_groups

CACHE = ROOT / "cache" / "ranking"
RECIPE = 1  # raised whenever the same settings would train other nets
DRAWS = 300_000  # for a bin, before it counts as out of the space's reach
WARMUP, FINAL_LR = 0.05, 0.1  # share of the steps in which the learning rate rises; last over highest


@dataclass(frozen=True)
class Cell:
    """One net to be trained: what its loss depends on, the runs' own settings aside."""

    genome: Genome
    seed: int
    steps: int
    batch_size: int
    sequences: int
    inherits: str | None = None  # the run whose weights it begins with; None: fresh ones, trained alone


class Trainer:
    """Trains nets alone on the data, in the space and with the optimizer of the first of the runs, or tunes them."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self.runs = {run.name: load_supernet(run) for run in runs}
        run, first = runs[0], self.runs[runs[0].name]
        self.data = first.tokens()
        self.model = read_json(run / "supernet" / SPACE)["model"]
        self.config: Any = OmegaConf.load(run / "config.yaml")
        self.length = int(self.config.sequence_length)

    def path(self, cell: Cell) -> Path:
        """Return the file that keeps the cell's loss."""
        given = {key: value for key, value in asdict(cell).items() if value is not None}
        decides: dict[str, Any] = {**given, "recipe": RECIPE, "model": self.model, "corpus": self.data.hash}
        if cell.inherits is None:
            decides |= {key: OmegaConf.to_container(self.config[key]) for key in ("optimizer", "trainer")}
        else:
            supernet = self.runs[cell.inherits].supernet
            decides["weights"] = [weights_hash(extract(supernet, g)) for g in (cell.genome, supernet.space.largest)]
            decides["finetune"] = OmegaConf.to_container(_finetune(cell.steps, cell.batch_size))
        text = json.dumps({**decides, "length": self.length}, sort_keys=True)
        return CACHE / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def train(self, cell: Cell) -> None:
        """Train a net and keep its loss."""
        started, path = time.perf_counter(), self.path(cell)
        decoder = (self._from_fresh if cell.inherits is None else self._from_inherited)(cell, path.with_suffix(""))
        loss = valid_loss(decoder, self.data, cell.sequences, self.length)
        write_json(path, {**asdict(cell), "loss": loss, "seconds": round(time.perf_counter() - started, 1)})
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)

    def _from_fresh(self, cell: Cell, work: Path) -> Decoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(cell.seed, "ranking", "weights"))
            fresh = build_supernet(self.model, self.data.vocab_size)
        decoder = extract(fresh, fresh.space.check(cell.genome))
        seed = derive(cell.seed, "ranking", "batches")
        batches = Batches(self.data, cell.steps, lambda _: "train", seed, cell.batch_size, self.length)
        settings: Any = OmegaConf.to_container(self.config.trainer)
        fit(_Alone(decoder, build(self.config.optimizer), cell.steps), batches, work, settings, "alone")
        return decoder

    def _from_inherited(self, cell: Cell, work: Path) -> Decoder:
        assert cell.inherits is not None
        supernet = self.runs[cell.inherits].supernet
        tuning: FineTuning = build(_finetune(cell.steps, cell.batch_size), _recursive_=False)
        teacher = extract(supernet, supernet.space.largest).freeze_formats()
        return tuning.tune(work, "tuned", extract(supernet, cell.genome), teacher, self.data, cell.seed)


@cache
def _finetune(steps: int, batch_size: int) -> Any:
    return compose("search", f"finetune.steps={steps}", f"finetune.batch_size={batch_size}").finetune


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


def _start_worker(runs: Sequence[Path], n_threads: int) -> None:
    global _trainer
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(n_threads)
    _trainer = Trainer(runs)


def _end_with(parent: int) -> None:
    """End this process when its parent was killed: the command that goes on trains the same net."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _train_cell(cell: Cell) -> None:
    _trainer.train(cell)


def train_all(runs: Sequence[Path], cells: Sequence[Cell], workers: int) -> None:
    """Train what is not known yet, in processes of their own."""
    if not cells:
        return
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: one bar is enough
    n_threads = max(1, torch.get_num_threads() // workers)  # OMP_NUM_THREADS holds
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(runs, n_threads))
    with pool, progress(total=len(cells), desc="nets trained", unit="net") as bar:
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
    parser.add_argument("--tune-steps", type=int, default=0, help="of a further predictor; 0: leave it out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", default="ranking", help="of docs/results/NAME.json")
    arguments = parser.parse_args()
    if arguments.per_bin < 2:
        parser.error("--per-bin must be 2 or more")

    free = ("run", "seeds", "per_bin", "tune_steps", "workers", "name")  # more seeds or nets go on with what there is
    settings = {key: value for key, value in vars(arguments).items() if key not in free}
    settings["runs"] = [run.resolve().name for run in arguments.run]
    recorded(arguments.name, settings)  # what may not be written had better not be run
    trainer = Trainer(arguments.run)
    runs, data = list(trainer.runs.values()), trainer.data
    supernet = runs[0].supernet
    if any(r.supernet.space.to_json() != supernet.space.to_json() or r.data["hash"] != data.hash for r in runs):
        parser.error("--run: the runs must share space and corpus")
    largest = float(supernet.n_bytes(supernet.space.decode(supernet.space.largest))) / MB
    bins = [share * largest for share in sorted(arguments.bins)]
    floor = trainer.config.schedule.get("floor", {})
    nets = [(b, g) for b in bins for g in draw_bin(supernet, floor, b, arguments.tolerance, arguments.per_bin)]

    same = {key: settings[key] for key in ("batch_size", "sequences")}
    alone = {g: [Cell(g, seed, arguments.steps, **same) for seed in arguments.seeds] for _, g in nets}
    heirs = trainer.runs if arguments.tune_steps else ()
    tuned = {g: [Cell(g, 0, arguments.tune_steps, **same, inherits=name) for name in heirs] for _, g in nets}
    cells = [cell for _, g in nets for cell in (*tuned[g], *alone[g])]
    missing = [cell for cell in cells if not trainer.path(cell).exists()]
    print(f"{len(cells)} nets to train, {len(cells) - len(missing)} of them known already")
    train_all(arguments.run, missing, arguments.workers)

    rows = []
    for size_mb, genome in nets:
        done = {
            key: [read_json(trainer.path(c)) for c in of[genome]] for key, of in (("alone", alone), ("tuned", tuned))
        }
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
                **{key: [cell["loss"] for cell in found] for key, found in done.items() if found},
                "seconds": [cell["seconds"] for cell in done["alone"]],
            }
        )
    tokens = arguments.steps * arguments.batch_size * trainer.length
    compared = compare(rows, len(runs), len(arguments.seeds))
    steps = {"tune_steps": arguments.tune_steps, "tokens_alone": tokens}
    result = {"settings": settings, "seeds": arguments.seeds, **steps, **compared, "rows": rows}
    record(arguments.name, result)
    write_text(RESULTS / f"{arguments.name}.md", markdown(result))
    draw(result, RESULTS / f"{arguments.name}.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
