"""How long whole commands take: `python benchmarks/wall_clock.py` times `smoke`, `--demo` the demo too.

Each experiment trains and is searched in a temporary directory, the token cache included, as a user's first run
would. Writes docs/results/wall_clock.json.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, record

EXPERIMENTS = {"smoke": 0.2, "llama_like": 2.35}  # name -> budget.size_mb, as in the README and the Makefile


def main() -> None:
    """Time, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="time llama_like too: about 20 minutes")
    arguments = parser.parse_args()
    rows = []
    for name in ("smoke", "llama_like") if arguments.demo else ("smoke",):
        with tempfile.TemporaryDirectory() as folder:
            train = _seconds("train.py", f"+experiment={name}", f"runs_dir={folder}", f"data.cache_dir={folder}/cache")
            search = _seconds("search.py", f"run={folder}/{name}", f"budget.size_mb={EXPERIMENTS[name]}")
            shipped = sorted(Path(folder).glob(f"{name}/search/main/export/*"))
            made = {kind: sum((s / kind).exists() for s in shipped) for kind in ("model.gguf", "hf", "manifest.json")}
        rows.append({"experiment": name, "train_s": train, "search_s": search, "shipped": made})
    record("wall_clock", {"rows": rows})


def _seconds(script: str, *overrides: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, script, *overrides], cwd=ROOT, check=True)
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    main()
