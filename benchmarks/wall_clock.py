"""How long whole commands take: `python benchmarks/wall_clock.py` times `smoke`, `--demo` the demo too.

Each experiment trains and is searched in a temporary directory, the token cache included, as a user's first run
would. Writes docs/results/wall_clock.json.

`--search RUN` instead times a search of 2,000 evaluations on a trained run, nothing but evaluations after which the
front is found, and reads the peak memory of its largest process. Writes docs/results/large_search.json.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, record

EXPERIMENTS = {"smoke": 0.2, "llama_like": 1.93}  # name -> budget.size_mb, as in the README and the Makefile
EVALUATIONS = 2000


def main() -> None:
    """Time, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="time llama_like too: about 20 minutes")
    parser.add_argument("--search", metavar="RUN", type=Path, help="time 2,000 evaluations on a trained run instead")
    arguments = parser.parse_args()
    if arguments.search:
        _large_search(arguments.search)
        return
    rows = []
    for name in ("smoke", "llama_like") if arguments.demo else ("smoke",):
        with tempfile.TemporaryDirectory() as folder:
            train = _seconds("train.py", f"+experiment={name}", f"runs_dir={folder}", f"data.cache_dir={folder}/cache")
            search = _seconds("search.py", f"run={folder}/{name}", f"budget.size_mb={EXPERIMENTS[name]}")
            shipped = sorted(Path(folder).glob(f"{name}/search/main/export/*"))
            made = {kind: sum((s / kind).exists() for s in shipped) for kind in ("model.gguf", "hf", "manifest.json")}
        rows.append({"experiment": name, "train_s": train, "search_s": search, "shipped": made})
    record("wall_clock", {"rows": rows})


def _large_search(run: Path) -> None:
    folder = run / "search" / "large_search"
    shutil.rmtree(folder, ignore_errors=True)
    settings = ["search=large_search", f"evaluations={EVALUATIONS}", f"budget.size_mb={EXPERIMENTS['llama_like']}"]
    seconds = _seconds("search.py", f"run={run}", *settings, "n_finalists=1", "finetune.steps=0", "n_measured=10")
    # On Linux in KiB: of the largest process that has ended, which is the search itself.
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    evaluated = len((folder / "journal.jsonl").read_text().splitlines())
    record("large_search", {"evaluations": evaluated, "seconds": seconds, "peak_memory_mb": peak_mb})


def _seconds(script: str, *overrides: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, script, *overrides], cwd=ROOT, check=True)
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    main()
