"""From a genome to files that run elsewhere: extract, fine-tune, judge, export, measure."""

import copy
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from search.candidate import Candidate
from search.entries import all_finite, ships_tuned
from search.finalists import Judge
from search.finetune import WEIGHTS, FineTuning
from search.scoring import Scorer
from search.targets import Runtime, Target
from search.tuner import Tuner
from supernet.cli import progress
from supernet.config import build
from supernet.elastic import emulate
from supernet.errors import UserError
from supernet.files import read_json, write_json
from supernet.formats import MB, format_named
from supernet.genes import Genome
from supernet.losses import best_device, evaluate
from supernet.original import kept_original
from supernet.pretrained.decoder import decoder_of
from supernet.run import versions
from supernet.subnet import Decoder, extract, weights_hash

NETS = "nets"  # folder of what was judged: fine-tuned weights, and its entry when it is done
ENTRY = "entry.json"
NOT_RUN = {"measured": None, "runtime_test": None, "sample": None}
SAMPLE_TOKENS = 96
RUNTIME_TOKENS = 8192  # of the test split, on which the shipped file is compared with our own evaluation


class Shipyard:
    """Tunes, judges, exports and measures the nets of one search; what it made once it does not make again.

    Args:
        config: of the search.
        folder: of the search.
        scorer: knows the supernet, the tokens and the targets.
        command: for the manifests.
    """

    def __init__(self, config: DictConfig, folder: Path, scorer: Scorer, command: str) -> None:
        self.config, self.folder, self.scorer, self.command = config, folder, scorer, command
        self.trained, self.data, self.targets = scorer.trained, scorer.data, scorer.targets
        self.space = self.trained.supernet.space
        self.others: list[Target] = [build(node, name=str(name)) for name, node in config.exports.items()]

    @cached_property
    def finetuning(self) -> FineTuning:
        """How finalists are fine-tuned."""
        result = build(self.config.finetune, _recursive_=False)  # the trainer is built per finalist
        assert isinstance(result, FineTuning)
        return result

    @cached_property
    def judge(self) -> Judge:
        """The rows that finalists and baselines are judged on."""
        n, length = self.config.judge_sequences, int(self.data.config["sequence_length"])
        valid, test = (self.data.evaluation_batch(split, n, length).to(best_device()) for split in ("valid", "test"))
        slices = torch.from_numpy(self.data.evaluation_slices("test", n, length))
        return Judge(valid, test, self.config.eval_batch_size, slices, self.data.slices)

    @cached_property
    def teacher(self) -> Decoder:
        """What finalists learn from: the original that the run keeps, else the largest subnet."""
        original = kept_original(self.trained.folder)
        return self.inherited(self.space.largest).freeze_formats() if original is None else decoder_of(original)

    @cached_property
    def tuner(self) -> Tuner:
        """What fine-tunes the nets."""
        rows = self.judge.valid, self.config.eval_batch_size
        return Tuner(self.trained, self.data, self.finetuning, self.teacher, *rows, self.config.seed)

    def inherited(self, genome: Genome) -> Decoder:
        """Return the subnet as extracted."""
        return extract(self.trained.supernet, genome)

    def as_run(self, decoder: Decoder, target: Runtime | None = None) -> Decoder:
        """Return a copy with the weights that ship, which rounds activations as a target does, the first by default."""
        target = target or next(iter(self.targets.values()))
        result = copy.deepcopy(decoder).freeze_formats()
        emulate(result, target.rounds_activations, target.kv_format)
        return result

    def finalist(self, candidate: Candidate) -> dict[str, Any]:
        """Fine-tune, judge, ship and measure a finalist; return its entry of finalists.json."""
        key = str(candidate.id)
        return self._entry(key, f"finalist {key}", candidate.genome, self.finetuning.steps > 0, candidate)

    def baseline(self, name: str, genome: Genome) -> dict[str, Any]:
        """Judge and measure a baseline, fine-tuned for as many steps as the finalists."""
        return self._entry(name, name, genome, self.finetuning.steps > 0 and self.finetuning.baselines, None)

    def quantizer_baselines(self, target: Runtime) -> list[dict[str, Any]]:
        """Judge and measure what a target's own quantizer makes of the largest net in F16.

        Their quality is what the runtime itself computes. A kind that fails costs a line, and is left out.
        """
        found: list[dict[str, Any]] = []
        if not target.quantizer or not _runs_here(target):
            return found
        with tempfile.TemporaryDirectory() as folder:
            for kind in progress(iterable=target.quantizer, desc=f"quantize by {target.quantizer_name}", unit="net"):
                name = f"{target.quantizer_name} {kind}"
                done = self.work(f"{target.name} {kind}") / ENTRY
                if not done.exists():
                    try:
                        write_json(done, self._quantized(target, kind, name, Path(folder)))
                    except UserError as error:  # of this net, not of the search
                        print(f"{name}: {error}")
                        continue
                found.append(read_json(done))
        return found

    def _quantized(self, target: Runtime, kind: str, name: str, folder: Path) -> dict[str, Any]:
        decoder, tuned = self.best_largest
        whole = folder / target.file_name
        if not whole.exists():
            target.export(decoder, self.trained.tokenizer_json, folder, self.trained.tokenizer_files)
        path, n_bytes = target.quantized(whole, kind, folder)
        measured = target.measure(path)
        if not measured["built"]:
            raise UserError(measured["reason"])
        scores = self.judge.runtime_scores(target, path)
        return {
            "id": None,
            "name": name,
            "genome": None,  # its formats are none of ours
            "architecture": None,
            "scores": {"size_mb": n_bytes / MB},
            "inherited": None if tuned else scores,
            "fine_tuned": scores if tuned else None,
            "export": None,
            "on": {target.name: {**NOT_RUN, "predicted": None, "measured": measured}},
        }

    @cached_property
    def best_largest(self) -> tuple[Decoder, bool]:
        """The largest net in F16, and whether it is fine-tuned: as the baseline is, unless that made it worse."""
        (name, genome), *_ = self.space.baselines()
        entry, decoder = self.baseline(name, genome), self.inherited(genome)
        better = ships_tuned(entry)
        if better:
            decoder.load_state_dict(load_file(self.work(name) / WEIGHTS))
        for linear in decoder.linears():  # the largest net's format is the dearest there is, F16 or not
            linear.store_as(format_named("F16"))
        return decoder, better

    def work(self, key: str) -> Path:
        """Return the folder of what is made of a finalist or baseline."""
        return self.folder / NETS / key.replace(" ", "_")

    def _entry(self, key: str, name: str, genome: Genome, tune: bool, candidate: Candidate | None) -> dict[str, Any]:
        done = self.work(key) / ENTRY
        if done.exists():
            return read_json(done)
        decoder = self.inherited(genome)
        quality: dict[str, Any] = {"inherited": self.judge.scores(self.as_run(decoder)), "fine_tuned": None}
        trial = None
        if tune:
            tuned, trial = self.tuner.tuned(self.work(key), name, genome)
            scores = self.judge.scores(self.as_run(tuned))
            if all_finite(scores):
                quality["fine_tuned"] = scores
            if ships_tuned(quality):
                decoder = tuned
            else:
                before, after = quality["inherited"]["valid_loss"], scores["valid_loss"]
                took = f"took its loss on valid from {before:.4f} to {after:.4f}"
                did = took if quality["fine_tuned"] else "ended in losses that are no numbers"
                kept = "it keeps the weights it inherited; a lower finetune.lr may help"
                print(f"{name}: fine-tuning {did}, so {kept}")
        entry: dict[str, Any] = {
            "id": candidate.id if candidate else None,
            "name": name,
            "genome": list(genome),
            "architecture": self.space.decode(genome),
            "scores": dict(candidate.scores) if candidate else self.scorer.known(genome),
            **quality,
            "trial": trial,
            "export": f"export/{candidate.id}" if candidate else None,
        }
        if candidate:
            self._ship(candidate, decoder, "fine-tuned" if ships_tuned(quality) else "inherited", quality)
            entry["on"] = self._run(decoder, genome, self.folder / "export" / str(candidate.id))
        else:
            with tempfile.TemporaryDirectory() as folder:
                entry["on"] = self._run(decoder, genome, Path(folder))
        write_json(done, entry)
        return entry

    def _run(self, decoder: Decoder, genome: Genome, folder: Path) -> dict[str, dict[str, Any]]:
        """Return by target what the real runtime says of a net: cost, quality, sample text."""
        predicted = self.predicted(genome)
        return {
            name: {"predicted": predicted.get(name), **self.run_on(target, decoder, folder)}
            for name, target in self.targets.items()
        }

    def run_on(self, target: Runtime, decoder: Decoder, folder: Path) -> dict[str, Any]:
        """Return what a runtime says of a net, exported to `folder` unless it is there; None for what it cannot."""
        measured = self.measure(target, decoder, folder)
        if measured is None or not measured["built"]:
            return {**NOT_RUN, "measured": measured}
        path = folder / target.file_name
        length = int(self.data.config["sequence_length"])
        rows = self.data.evaluation_batch("test", max(1, RUNTIME_TOKENS // length), length)
        try:
            theirs = target.evaluate(path, rows.numpy())
        except UserError as error:  # of this net, not of the search
            return {**NOT_RUN, "measured": {**measured, "reason": str(error)}}
        ours = self.as_run(decoder, target)
        with torch.inference_mode():
            our_loss, _ = evaluate(ours, rows, self.config.eval_batch_size)
        judged = {**theirs, "our_loss": our_loss, "tokens": rows[:, 1:].numel()}
        try:
            text = target.generate(path, self.config.prompt, SAMPLE_TOKENS, self.config.seed)
        except UserError as error:  # as above
            return {"measured": {**measured, "reason": str(error)}, "runtime_test": judged, "sample": None}
        return {"measured": measured, "runtime_test": judged, "sample": self.config.prompt + text}

    def predicted(self, genome: Genome) -> dict[str, dict[str, float]]:
        """Return by target the costs that its hardware model predicts; nothing where there is none."""
        return self.scorer.costs(self.space.decode(genome))

    def measure(self, target: Runtime, decoder: Decoder, folder: Path) -> dict[str, Any] | None:
        """Export a net to `folder` unless it is there, and measure it; None without the runtime.

        A target whose hardware was measured elsewhere is not measured here.
        """
        if not _runs_here(target):
            return None
        path = folder / target.file_name
        if not path.exists():
            try:
                path = target.export(decoder, self.trained.tokenizer_json, folder, self.trained.tokenizer_files)
            except UserError as error:  # of this net, not of the search
                return {"built": False, "reason": str(error)}
        return target.measure(path)

    def ship_candidate(self, candidate: Candidate) -> dict[str, Path]:
        """Ship any candidate: fine-tuned weights where there are some and they are better, else inherited ones."""
        decoder, kind = self.inherited(candidate.genome), "inherited"
        tuned, done = (self.work(str(candidate.id)) / name for name in (WEIGHTS, ENTRY))
        entry = read_json(done) if done.exists() else {}
        if tuned.exists() and (not entry or ships_tuned(entry)):
            decoder.load_state_dict(load_file(tuned))
            kind = "fine-tuned"
        quality: dict[str, Any] = {key: entry[key] for key in ("inherited", "fine_tuned") if key in entry}
        return self._ship(candidate, decoder, kind, quality)

    def _ship(
        self, candidate: Candidate, decoder: Decoder, weights: str, quality: Mapping[str, Any]
    ) -> dict[str, Path]:
        folder = self.folder / "export" / str(candidate.id)
        files: dict[str, Path] = {}
        failed: dict[str, str] = {}
        for target in [*self.targets.values(), *self.others]:
            try:
                files[target.name] = target.export(
                    decoder, self.trained.tokenizer_json, folder, self.trained.tokenizer_files
                )
            except UserError as error:
                failed[target.name] = str(error)
                print(f"candidate {candidate.id} is not shipped for {target.name}: {error}")
        manifest = {
            "id": candidate.id,
            "weights": weights,
            "architecture": self.space.decode(candidate.genome),
            "genome": list(candidate.genome),
            "scores": dict(candidate.scores),
            "quality": dict(quality),
            "lineage": vars(candidate.lineage),
            "corpus": self.data.hash,
            "versions": versions(),
            "command": self.command,
            "files": {name: path.relative_to(folder).as_posix() for name, path in files.items()},
            "failed": failed,
            "weights_sha256": weights_hash(decoder),
        }
        write_json(folder / "manifest.json", manifest)
        return {**files, "manifest": folder / "manifest.json"}


def _runs_here(target: Runtime) -> bool:
    return target.available() is None and target.hardware is None
