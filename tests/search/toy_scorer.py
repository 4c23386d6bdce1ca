"""A scorer for workers, and how to find the processes that run it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from supernet.errors import UserError


class StrangeError(Exception):
    """One that pickles and does not unpickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def make_scorer(folder):
    """Return the scorer; `folder` remembers how often each number was begun."""
    if folder == "mistake":
        raise UserError("no such run")
    if folder == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    if folder == "forever":
        time.sleep(3600)

    def score(task):
        number, deed = task
        if folder:
            with (Path(folder) / str(number)).open("a") as file:
                file.write("begun\n")
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "exit":
            sys.exit(3)
        elif deed == "die with a child":
            os.fork() or time.sleep(3600)  # the child keeps the parent's end of the pipe
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "die once" and attempts(folder, number) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "hang":
            subprocess.run(["sleep", "3600"], check=True)
        elif deed == "hang once" and attempts(folder, number) == 1:
            time.sleep(3600)
        elif deed == "mistake":
            raise UserError(f"no objective {number}")
        elif deed == "bug":
            return {"ratio": number / 0}
        elif deed == "strange bug":
            raise StrangeError(number, deed)
        elif deed == "no data":
            return {"score": lambda: number}
        elif isinstance(deed, float):
            time.sleep(deed)
        return {"square": float(number**2)}

    return score


def surroundings(_):
    """Return a scorer that says what a worker runs in."""
    return lambda task: {"threads": os.environ["OMP_NUM_THREADS"], "folder": os.getcwd()}


def attempts(folder, number):
    path = Path(folder) / str(number)
    return len(path.read_text().splitlines()) if path.exists() else 0


def worker_pids(search_pid, of_ray=True):
    """Return the processes that work for a search, and what these have started; zombies are none."""
    mark = f"SEARCH_PID={search_pid}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
            if mark in environment.split(b"\0") and (of_ray or b"RAY_RAYLET_PID=" not in environment):
                found.append(int(path.parent.name))
        except OSError:  # gone, or not ours
            continue
    return found
