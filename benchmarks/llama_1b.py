"""What a supernet of Llama-3.2-1B's shape takes: as planned, and where there is a GPU, as trained on it.

`python benchmarks/llama_1b.py` writes a checkpoint of that shape with random weights, imports it, plans what
`+experiment=compress` with it would need, and on a GPU trains some steps with the checkpoint as teacher: tokens a
second, and the most memory that PyTorch handed out. Text is random ids. Writes docs/results/llama_1b.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import compose, record
from memory_plan import LLAMAS, NoText, in_children, save_shards

from supernet import stage
from supernet.formats import MB
from supernet.original import make_teacher
from supernet.plan import plan

GB = 1000 * MB


def main() -> None:
    """Import, plan, train where that can be, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(LLAMAS), default="Llama-3.2-1B")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, to try the command")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=41, help="on a GPU; rates are of every tenth but the first")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of train.py")
    arguments = parser.parse_args()
    shape = dict(LLAMAS[arguments.shape][1])
    if arguments.layers is not None:
        shape["num_hidden_layers"] = arguments.layers
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "llama"
        checkpoint.mkdir()
        n_bytes, _ = save_shards(checkpoint, shape, GB, torch.bfloat16)
        overrides = (
            "+experiment=compress",
            f"model.init={checkpoint}",
            "data.tokenizer_file=none",  # ids are random
            "data.corpus.paths=[none]",
            f"runs_dir={folder}",
            f"batch_size={arguments.batch_size}",
            f"sequence_length={arguments.sequence_length}",
            f"schedule.joint_steps={arguments.steps}",
            *arguments.train,
        )
        config = stage.with_shape(compose("train", *overrides))
        started = time.perf_counter()
        (peak,) = in_children("load", [str(checkpoint)], [None])
        imported = {"checkpoint_gb": n_bytes / GB, "seconds": time.perf_counter() - started, "peak_gb": peak / GB}
        found = plan(config)
        planned = {str(n): {key: size / GB for key, size in found.on(n).items()} for n in (1, 2, 4, 8)}
        trained = _trained(config, shape["vocab_size"]) if torch.cuda.is_available() else None
    settings = {**vars(arguments), "parameters": found.n_parameters}
    record("llama_1b", {"settings": settings, "imported": imported, "planned_gb": planned, "trained": trained})


def _trained(config: Any, vocab_size: int) -> dict[str, float]:
    """Train as `train.py` does, but for the text; return what it took."""
    data: Any = NoText(vocab_size)
    supernet = stage.make_supernet(config, data)
    training = stage.make_training(config, supernet, make_teacher(config, supernet))
    run = stage.Run(Path(config.runs_dir) / "run", finished=False, command="", origin={})
    torch.cuda.reset_peak_memory_stats()
    metrics = stage.train(config, run, training, data)
    rates = [row["tokens_per_s"] for row in metrics.rows[1:]]
    return {"tokens_per_s": statistics.median(rates), "peak_gb": torch.cuda.max_memory_allocated() / GB}


if __name__ == "__main__":
    main()
