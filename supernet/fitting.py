"""One training loop for supernets and finalists: Lightning, exact resume, the last good checkpoint."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from supernet.cli import progress
from supernet.config import build
from supernet.data import OTHER_TOKENIZER, TokenData
from supernet.errors import UserError
from supernet.files import replacing
from supernet.randomness import derive

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
OURS = (
    "accumulate_grad_batches",
    "fast_dev_run",
    "limit_train_batches",
    "max_epochs",
    "max_steps",
    "max_time",
    "overfit_batches",
)


class _Steps(IterableDataset[Tensor]):
    """The batch of every step from `first` on."""

    def __init__(self, batches: "Batches", first: int, rank: int) -> None:
        self.batches, self.first, self.rank = batches, first, rank

    def __iter__(self) -> Iterator[Tensor]:
        b = self.batches
        seed = derive(b.seed, "rank", self.rank)
        for step in range(self.first, b.steps):
            yield b.data.batch(b.split_of(step), seed, step, b.batch_size, b.sequence_length)


class Batches(L.LightningDataModule):
    """Batches (batch_size, sequence_length + 1) as a pure function of the step: the position is all the state.

    Args:
        data: the tokens.
        steps: how many there are.
        split_of: step -> name of the split it reads.
        seed: root of the draws.
        batch_size: sequences in a step.
        sequence_length: tokens in a sequence.
    """

    def __init__(
        self,
        data: TokenData,
        steps: int,
        split_of: Callable[[int], str],
        seed: int,
        batch_size: int,
        sequence_length: int,
    ) -> None:
        super().__init__()
        self.data, self.steps, self.split_of, self.seed = data, steps, split_of, seed
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.first = 0

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return a loader that starts where training stands."""
        rank = self.trainer.global_rank if self.trainer else 0
        return DataLoader(_Steps(self, self.first, rank), batch_size=None)

    def calibration(self, n: int) -> Tensor:
        """Return as much text of the training split as `n` batches, the same in every process."""
        rows = n * self.batch_size
        return self.data.batch("train", derive(self.seed, "calibration"), 0, rows, self.sequence_length)

    def state_dict(self) -> dict[str, Any]:
        """Return the next step, and of which text it is."""
        step = self.trainer.global_step if self.trainer else 0
        return {"step": step, "corpus": self.data.hash, "tokenizer": self.data.tokenizer_sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of a checkpoint.

        Raises:
            UserError: it was written while training on another text, or with another tokenizer: the same token ids
                would mean other tokens.
        """
        if state.get("corpus", self.data.hash) != self.data.hash:  # checkpoints of before it was kept have none
            raise UserError(
                f"the corpus has changed since this training began (its hash was {state['corpus']}, now it is"
                f" {self.data.hash}): restore it, or begin again with fresh=true"
            )
        if state.get("tokenizer", self.data.tokenizer_sha256) != self.data.tokenizer_sha256:
            raise UserError(f"{self.data.directory} {OTHER_TOKENIZER}, or begin again with fresh=true")
        self.first = state["step"]


class _Streamed(TorchCheckpointIO):
    """Writes a checkpoint tensor by tensor; Lightning would first put all of it together in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all."""
        try:
            with replacing(Path(path)) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # of a full disk torch only says that it is not where it should be
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class ProgressBar(Callback):
    """One bar over all steps, whatever Lightning takes an epoch to be, with all that was logged last."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start where a resumed run stands."""
        self.bar = progress(total=trainer.max_steps, initial=trainer.global_step, desc=self.name, unit="step")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Show the latest values."""
        logged = {k.removeprefix("loss_"): f"{float(v):.4g}" for k, v in trainer.callback_metrics.items()}
        self.bar.set_postfix(logged, refresh=False)
        self.bar.update()

    def on_train_end(self, *_: Any) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def on_exception(self, *_: Any) -> None:
        """End the bar's line, so that the error has one of its own."""
        if hasattr(self, "bar"):
            self.bar.close()


def fit(
    module: L.LightningModule,
    batches: Batches,
    folder: Path,
    settings: Mapping[str, Any],
    name: str,
    callbacks: Sequence[Callback] = (),
    logger: Any = None,
) -> None:
    """Train to the last step, from the last good checkpoint in `folder` if there is one.

    Args:
        module: what is trained.
        batches: on what, and for how many steps.
        folder: for checkpoints.
        settings: of `lightning.Trainer`, and `checkpoint_every` in steps.
        name: of the progress bar.
        callbacks: further ones.
        logger: a Lightning logger.

    Raises:
        KeyboardInterrupt: the user stopped it.
    """
    keep = ModelCheckpoint(
        folder,
        "{step}",
        monitor="step",
        mode="max",
        save_top_k=2,
        every_n_train_steps=settings["checkpoint_every"],
        save_on_train_epoch_end=False,
    )
    with warnings.catch_warnings():
        # Notes on worker counts and log directories: neither is the user's business here.
        warnings.filterwarnings("ignore", module="lightning|torch.utils.data|torch.jit")
        trainer = _trainer(
            settings,
            max_steps=batches.steps,
            max_epochs=-1,
            callbacks=[keep, ProgressBar(name), *callbacks],
            logger=logger or False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            plugins=[_Streamed()],
        )
        try:
            trainer.fit(module, batches, ckpt_path=_last_good(folder), weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None


def check_trainer(settings: Mapping[str, Any]) -> L.Trainer:
    """Return a trainer of the settings, to ask for its device and precision.

    Raises:
        UserError: none can be made of them.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"trainer must hold the settings of conf/trainer/, got {settings!r}")
    every = settings.get("checkpoint_every")
    if not isinstance(every, int) or every < 1:
        raise UserError(f"trainer.checkpoint_every must be 1 or more steps, got {every}")
    for key in OURS:
        if key in settings:
            raise UserError(f"trainer.{key} cannot be set: which batch a step takes is the schedule's (conf/schedule/)")
    trainer = _trainer(settings, logger=False)
    if trainer.precision == "64-true":
        raise UserError("trainer.precision=64-true: formats are decoded to float32; say 32-true")
    if trainer.precision in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"):
        raise UserError(f"trainer.precision={trainer.precision} rounds what is trained; say bf16-mixed or 32-true")
    return trainer


def _trainer(settings: Mapping[str, Any], **more: Any) -> L.Trainer:
    own = {key: value for key, value in settings.items() if key != "checkpoint_every"}
    if own.get("precision") == "auto":
        own["precision"] = "bf16-mixed" if _has_bf16() else "32-true"
    trainer = build(OmegaConf.create(own), **more)
    assert isinstance(trainer, L.Trainer)
    if own.get("strategy", "auto") == "auto" and isinstance(trainer.strategy, DDPStrategy):
        # A step trains weights or gates, and of the weights those that its nets have.
        return _trainer({**settings, "strategy": "ddp_find_unused_parameters_true"}, **more)
    return trainer


def _has_bf16() -> bool:
    """Return whether the device that Lightning will choose multiplies bfloat16 matrices in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _last_good(folder: Path) -> str | None:
    """Return the newest checkpoint that can be read; a damaged one is named and passed over."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            print(f"{path} is damaged ({type(error).__name__}); going back to the checkpoint before it")
            continue
        return str(path)
    return None
