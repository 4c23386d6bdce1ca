"""Probe models for a device that is elsewhere: `python -m search.targets.llama_cpp RUN FOLDER`.

FOLDER then holds GGUF files, what is in them (`probes.json`) and `measure.py`. The folder is copied to the
device, `python measure.py` there writes hardware.json, and its path goes into `targets.NAME.hardware` of a search
or `gates.hardware` of a training.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from search.targets import Runtime
from supernet.config import CONF, build, one_line_errors, register
from supernet.errors import UserError
from supernet.files import FORMAT_VERSION, replacing, sha256, write_text
from supernet.hardware import MIN_PROBES, probe_genomes
from supernet.run import TrainedSupernet, load_supernet
from supernet.subnet import extract

MEASURE, PROBES = "measure.py", "probes.json"
CHILD = Path(__file__).with_name("llama_cpp_child.py")


def export_folder(trained: TrainedSupernet, target: Any, folder: Path, n_probes: int, seed: int = 0) -> None:
    """Write the probe models of a supernet, what is known of them, and the program that measures them.

    Args:
        trained: the supernet and its tokenizer.
        target: a `LlamaCpp`, under whose settings the device will measure.
        folder: to write; must be new or empty.
        n_probes: models to write.
        seed: of the draws among the subnets.

    Raises:
        UserError: the folder is not empty, or a subnet cannot be a GGUF file.
    """
    import json

    from supernet.cli import progress

    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty")
    supernet = trained.supernet
    probes = []
    for genome in progress(iterable=probe_genomes(supernet.space, n_probes, seed), desc="export", unit="net"):
        path = target.export(extract(supernet, genome), trained.tokenizer_json, folder, trained.tokenizer_files)
        named = path.replace(folder / f"{sha256(path)[:16]}.gguf")
        inventory = supernet.inventory(supernet.space.decode(genome))
        probes.append({"file": named.name, "genome": list(genome), "inventory": inventory})
    plan = {
        "version": FORMAT_VERSION,
        "target": target.name,
        "about": {
            "settings": dict(target.settings),
            "kv_bytes_per_value": target.kv_bytes_per_value,
            "planned": len(probes),
        },
        "request": {**target.settings, **target.request()},
        "environment": dict(target.environment),
        "timeout_s": target.timeout_s,
        "probes": probes,
    }
    with replacing(folder / MEASURE) as temporary:
        shutil.copyfile(CHILD, temporary)
    write_text(folder / PROBES, json.dumps(plan, indent=1) + "\n")


def preset(name: str) -> Runtime:
    """Return the target that conf/target/NAME.yaml describes.

    Raises:
        UserError: there is none, or it does not ship GGUF files.
    """
    from hydra import compose, initialize_config_dir

    if not (CONF / "target" / f"{name}.yaml").exists():
        known = ", ".join(sorted(path.stem for path in (CONF / "target").glob("llama_cpp*.yaml")))
        raise UserError(f"--target {name}: there is no conf/target/{name}.yaml; these export probes: {known}")
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose(f"target/{name}").targets[name]
    target = build(node, name=name)
    if getattr(target, "module", "") != "search.targets.llama_cpp_child":
        raise UserError(f"--target {name} does not run GGUF files, which measure.py can measure")
    assert isinstance(target, Runtime)
    return target


@one_line_errors
def main() -> None:
    """Export a folder of probes as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m search.targets.llama_cpp",
        description="Export subnets of a trained supernet for measuring on another device: copy FOLDER there, run"
        " `python measure.py` in it (needs llama-cpp-python and numpy), and name the hardware.json that it writes as"
        " targets.NAME.hardware=PATH of a search or gates.hardware=PATH of a training.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a finished training, runs/NAME")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="to write, new or empty")
    parser.add_argument("--probes", type=int, default=48, metavar="N", help="how many subnets (%(default)s)")
    parser.add_argument("--target", default="llama_cpp", help="conf/target/NAME.yaml with the settings (%(default)s)")
    arguments = parser.parse_args()
    if arguments.probes < MIN_PROBES:
        raise UserError(f"--probes must be {MIN_PROBES} or more, got {arguments.probes}")
    target = preset(arguments.target)
    export_folder(load_supernet(arguments.run), target, arguments.folder, arguments.probes)
    print(f"next: copy {arguments.folder} to the device and run `python {MEASURE}` in it")
