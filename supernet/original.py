"""The frozen original of a run: the pretrained Llama behind `model.init`, of which the run keeps a copy."""

import copy
from pathlib import Path

from omegaconf import DictConfig

from supernet.config import build
from supernet.errors import UserError
from supernet.model import Supernet
from supernet.pretrained.checkpoint import Checkpoint
from supernet.pretrained.decoder import decoder_of
from supernet.pretrained.hf_llama import CONFIG, HuggingFaceLlama, save
from supernet.pretrained.load import load_checkpoint, open_checkpoint
from supernet.run import TrainedSupernet
from supernet.teacher import Teacher

TEACHER = Path("supernet", "teacher")  # in a run


def original_of(config: DictConfig) -> Checkpoint | None:
    """Return the pretrained Llama that teaches the subnets of a training or writes their text; None where none does.

    Raises:
        UserError: there is none where one is needed, it cannot be taken, or these would be two.
    """
    paths = {"model.init (teacher=original)": config.model.get("init")} if config.teacher else {}
    if "sampling" in config.data:
        paths["data.sampling.checkpoint"] = config.data.sampling.checkpoint
    if len(set(paths.values())) > 1:
        raise UserError(f"data.sampling.checkpoint must be model.init, a run keeps one original; got {paths}")
    return open_original(*next(iter(paths.items()))) if paths else None


def open_original(key: str, path: str | None) -> Checkpoint:
    """Return the checkpoint at a path or, where that is a run, the one that the run keeps.

    Args:
        key: of the setting that names it, for the message.
        path: None where nothing is named.

    Raises:
        UserError: there is none, or it cannot be taken.
    """
    found = None
    if path is not None and Path(path).exists():
        found = kept_original(Path(path)) or open_checkpoint(Path(path))
    if found is None:
        raise UserError(f"{key}: {path or 'null'} is no pretrained Llama, nor a run that keeps one")
    return found


def kept_original(run: Path) -> Checkpoint | None:
    """Return the original that a run keeps; None where it keeps none."""
    folder = run / TEACHER
    return HuggingFaceLlama(folder) if (folder / CONFIG).exists() else None


def original_supernet(trained: TrainedSupernet) -> Supernet | None:
    """Return a run's supernet with the weights of the original that it keeps; None where it keeps none."""
    original = kept_original(trained.folder)
    if original is None:
        return None
    supernet = copy.deepcopy(trained.supernet)
    load_checkpoint(supernet, original)
    return supernet


def keep_original(original: Checkpoint, run: Path) -> None:
    """Write a copy of the original into a run, unless it is there."""
    if kept_original(run) is None:
        save(original, run / TEACHER)


def make_teacher(config: DictConfig, supernet: Supernet, original: Checkpoint | None = None) -> Teacher | None:
    """Return the original as the teacher of a supernet; None where the subnets learn from the text alone.

    Args:
        config: of the training.
        supernet: what is taught.
        original: the checkpoint, where that is not to be opened here.

    Raises:
        UserError: its vocabulary is another, or settings of the teacher make no sense.
    """
    original = original or original_of(config)
    if original is None or not config.teacher:
        return None
    if original.llama.vocab_size != supernet.vocab_size:
        sizes = f"{original.llama.vocab_size} and {supernet.vocab_size} tokens"
        raise UserError(f"teacher: {original.path} and the supernet have different vocabularies, of {sizes}")
    teacher = build(config.teacher, decoder_of(original, supernet.embedding.weight.device))
    assert isinstance(teacher, Teacher)
    if teacher.hidden and len(supernet.d_model) > 1:
        raise UserError("teacher.hidden must be 0 where model.d_model is cut: its channels are put in another order")
    return teacher
