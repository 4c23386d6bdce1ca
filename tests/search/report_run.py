"""The files of a synthetic finished run, as training and search write them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from search.candidate import Candidate
from search.journal import Journal
from supernet.files import read_json, write_json, write_text
from supernet.genes import Gene, Genome, SearchSpace
from supernet.hardware import HardwareModel, Probe

FORMATS = ("Q4_0", "Q5_0", "Q8_0", "F16")
OPERATORS = ("mutate", "cross", "gate mutate")


def make_space() -> SearchSpace:
    genes = [Gene("d_model", (96, 128), "width"), Gene("embedding.format", FORMATS[:3], "format")]
    for i in range(4):
        attention, mlp = f"layers.{i}.attention.active", f"layers.{i}.mlp.active"
        genes += [
            Gene(attention, (0, 1), "switch"),
            Gene(f"layers.{i}.attention.kv_heads", (1, 2), "width", attention),
            Gene(f"layers.{i}.attention.heads_per_kv", (1, 2), "width", attention),
            Gene(f"layers.{i}.attention.qkv_format", FORMATS, "format", attention),
            Gene(f"layers.{i}.attention.o_format", FORMATS, "format", attention),
            Gene(mlp, (0, 1) if i else (1,), "switch"),
            Gene(f"layers.{i}.mlp.width", (128, 256, 384), "width", mlp),
            Gene(f"layers.{i}.mlp.gate_up_format", FORMATS, "format", mlp),
            Gene(f"layers.{i}.mlp.down_format", FORMATS, "format", mlp),
        ]
    return SearchSpace(genes)


class Fixture:
    """Writes the files of a finished run whose scores follow a smooth law plus noise."""

    def __init__(self, root: Path, n_candidates: int = 60, targets: tuple[str, ...] = ("llama_cpp",)) -> None:
        self.space, self.rng = make_space(), np.random.default_rng(3)
        self.run, self.search_dir = root / "runs" / "demo", root / "runs" / "demo" / "search" / "main"
        self.journal = self.make_journal(n_candidates)
        feasible = [c for c in self.journal if c["feasible"]] or self.journal
        self.front = [c for c in feasible if not any(self.dominates(other, c) for other in feasible)]
        self.front.sort(key=lambda c: c["scores"]["size_mb"])
        lists = {"finalists": [self.entry(c, f"finalist {c['id']}", True) for c in self.front[-4:]]}
        lists["baselines"] = [self.uniform(name) for name in FORMATS[:3]]
        largest = self.entry(self.candidate(self.space.largest, None), "largest F16", False)
        lists["baselines"] += [largest, self.by_own_quantizer(largest)]
        members = [{**c, "architecture": {}, "predicted": None, "measured": self.measured(c)} for c in self.front]
        write_json(self.run / "supernet" / "space.json", {"genes": self.space.to_json()})
        write_json(self.search_dir / "front.json", {"targets": dict.fromkeys(targets, members)})
        write_json(self.search_dir / "finalists.json", {"targets": dict.fromkeys(targets, lists)})
        self.write_journal()
        write_text(self.search_dir / "config.yaml", CONFIG)
        for entry in lists["finalists"]:
            write_text(self.search_dir / str(entry["export"]) / "model.gguf", "")
            write_text(self.search_dir / str(entry["export"]) / "hf" / "config.json", '{"auto_map": {}}')
        self.write_supernet()

    def write_journal(self) -> None:
        path = self.search_dir / "journal.jsonl"
        path.unlink(missing_ok=True)
        Journal(path, self.space).append([Candidate.from_json(c) for c in self.journal])

    def candidate(self, genome: Genome, i: int | None) -> dict[str, Any]:
        values = [index / max(1, len(g.choices) - 1) for g, index in zip(self.space, genome, strict=True)]
        size = 0.4 + 4.6 * float(np.mean(values)) ** 2
        loss = 2.55 + 0.42 / size + 0.05 * float(np.random.default_rng(genome).standard_normal())
        scores = {"loss": round(loss, 4), "size_mb": round(size, 4)}
        return {
            "id": i,
            "genome": list(genome),
            "scores": scores,
            "violation": max(0.0, size / 1.5 - 1),
            "feasible": size <= 1.5,
            "stopped": None,
        }

    def make_journal(self, n: int) -> list[dict[str, Any]]:
        journal: list[dict[str, Any]] = []
        for i in range(n):
            parents: list[dict[str, Any]] = []
            if i < 20:
                first = (
                    "uniform Q4_0",
                    "largest",
                    "smallest",
                    "gates mode",
                    *["gates sample"] * 6,
                    *["random"] * 10,
                )
                operator, genome = first[i], self.space.sample(self.rng)
                if operator == "gates sample":
                    genome = self.space.replace(genome, lambda gene, index: index // 2)
            else:
                operator = OPERATORS[i % 3]
                told = journal[: i // 20 * 20]  # a generation is asked for at once
                good = sorted(told, key=lambda c: c["scores"]["loss"] + 4 * max(0, c["scores"]["size_mb"] - 1.5))
                parents = [good[int(self.rng.integers(8))] for _ in range(1 + (operator == "cross"))]
                genes = set(self.rng.choice(len(self.space), 3).tolist())
                genome = self.space.canonical(
                    [
                        int(self.rng.integers(len(g.choices))) if j in genes else parents[j % len(parents)]["genome"][j]
                        for j, g in enumerate(self.space)
                    ]
                )
            changed = (
                [g.name for g, a, b in zip(self.space, genome, parents[0]["genome"], strict=True) if a != b]
                if parents
                else []
            )
            ids = [p["id"] for p in parents]
            origin = {
                "generation": i // 20,
                "operator": operator,
                "parents": ids,
                "changed": changed,
                "seed": 7,
            }
            journal.append({**self.candidate(genome, i), "lineage": origin})
        return journal

    @staticmethod
    def dominates(a: dict[str, Any], b: dict[str, Any]) -> bool:
        pairs = [(a["scores"][k], b["scores"][k]) for k in ("loss", "size_mb")]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    def measured(self, c: dict[str, Any]) -> dict[str, float]:
        size = c["scores"]["size_mb"]
        p50 = 0.4 + 0.5 * size + 0.05 * float(self.rng.random())
        times = {
            "ttft_ms": 12 * size,
            "prefill_tokens": 128,
            "decode_ms": p50,
            "decode_p95_ms": 1.3 * p50,
        }
        return {
            **times,
            "peak_memory_mb": 30 + 2 * size,
            "kv_bytes_per_token": 2048,
            "file_mb": size + 0.1,
        }

    def entry(self, c: dict[str, Any], name: str, tuned: bool) -> dict[str, Any]:
        loss = c["scores"]["loss"]

        def splits(gain: float) -> dict[str, Any]:
            valid, test = loss - gain, loss - gain + 0.03
            accuracies = {"valid_accuracy": math.exp(-valid / 3), "test_accuracy": math.exp(-test / 3)}
            finer = {"late_loss": test - 0.1, "slice_losses": {"asyncio": 2 * test, "json": test - 0.4}}
            return {"valid_loss": valid, "test_loss": test, **accuracies, **finer}

        return {
            "id": c["id"],
            "name": name,
            "genome": c["genome"],
            "architecture": self.space.decode(tuple(c["genome"])),
            "scores": c["scores"] if tuned else {"size_mb": c["scores"]["size_mb"]},
            "inherited": splits(0.0),
            "fine_tuned": splits(0.08) if tuned or name.startswith("uniform") else None,
            "predicted": None,
            "measured": self.measured(c),
            "export": f"export/{c['id']}" if tuned else None,
            "sample": f"import os\n\n\ndef main(path):\n    return os.path.join(path, '{name}')\n" * 3,
            "runtime_test": {"loss": loss - 0.05, "accuracy": 0.41},
        }

    def uniform(self, name: str) -> dict[str, Any]:
        genome = self.space.with_format(self.space.largest, name) if name in FORMATS[:3] else self.space.largest
        return self.entry(self.candidate(genome, None), f"uniform {name}", False)

    @staticmethod
    def by_own_quantizer(largest: dict[str, Any]) -> dict[str, Any]:
        scores = {"inherited": None, "fine_tuned": largest["inherited"], "scores": {"size_mb": 1.8}}
        unknown = dict.fromkeys(("genome", "architecture", "predicted", "sample", "runtime_test"))
        return {**largest, **scores, **unknown, "name": "llama.cpp Q4_K_M"}

    def write_supernet(self) -> None:
        folder, n_steps = self.run / "supernet", 40
        history = []
        for step in range(n_steps):
            sharp = 4 * step / n_steps
            budgets = []
            for lean in (-1, 1):
                logits = [
                    sharp * lean * np.arange(len(g.choices)) * np.sin(1 + 7 * i) for i, g in enumerate(self.space)
                ]
                budgets.append([(np.exp(row) / np.exp(row).sum()).tolist() for row in logits])
            mbs = [1.0 + 1.5 * math.exp(-step / 8), 1.5 + 1.2 * math.exp(-step / 9)]
            record = {"step": 400 + 10 * step, "temperature": 4 * 0.95**step, "expected_mb": mbs}
            history.append({**record, "probabilities": budgets})
        names = [gene.name for gene in self.space]
        write_json(folder / "gates.json", {"budgets_mb": [1.0, 1.5], "genes": names, "history": history})
        table = [{"name": n, "size_mb": s, "valid_loss": v, "valid_accuracy": 0.4} for n, s, v in NETS]
        phases = [
            {"name": n, "steps": s, "seconds": 2.0 * s, "tokens": 16_384 * s, "flops": 1.3e11 * s}
            for n, s in (("warm-up", 400), ("gates", 400))
        ]
        counts = {"parameters": 1_312_640, "steps": 800, "tokens": 13_107_200, "seconds": 1600.5}
        write_json(folder / "summary.json", {"table": table, "phases": phases, **counts})
        rows = ["step,phase,loss_largest,loss_smallest,loss_sampled,loss_gates,temperature,expected_mb,tokens_per_s"]
        for step in range(0, 800, 5):
            base = 2.6 + 4 * math.exp(-step / 120) + 0.03 * float(self.rng.standard_normal())
            gates = f"{base + 0.2:.4f},{4 * 0.99**step:.4f},1.7" if step >= 400 else ",,"
            phase = "gates" if step >= 400 else "warm-up"
            rows.append(f"{step},{phase},{base:.4f},{base + 0.4:.4f},{base + 0.25:.4f},{gates},8200")
        write_text(folder / "metrics.csv", "\n".join(rows) + "\n")

    def change(self, name: str, change: Any) -> None:
        """Rewrite every finalist, baseline or front member through `change`."""
        content = read_json(self.search_dir / name)
        for target, value in content["targets"].items():
            if isinstance(value, list):
                content["targets"][target] = [change(e) for e in value]
            else:
                content["targets"][target] = {k: [change(e) for e in v] for k, v in value.items()}
        write_json(self.search_dir / name, content)


NETS = (("smallest", 0.61, 3.31), ("largest F16", 5.0, 2.61), ("uniform Q4_0", 1.52, 2.79))
CONFIG = """\
run: runs/demo
search: main
seed: 7
workers: 2
budget: {size_mb: 1.5, loss: null, decode_ms: null}
evolution: {_target_: search.strategies.nsga2.NSGA2, population: 20, fitness: {loss: null}}
objectives: {loss: {_target_: search.objectives.loss.Loss}, size_mb: {_target_: search.objectives.size_mb.Size}}
targets: {llama_cpp: {_target_: search.targets.llama_cpp.LlamaCpp, hardware: null}}
"""


class Everything(Fixture):
    """A run with all there can be: targets here and elsewhere, five objectives, hurdles, failures, weights."""

    TARGETS = ("one_thread", "two_threads", "phone")

    def __init__(self, root: Path) -> None:
        super().__init__(root, targets=self.TARGETS)
        parents = {parent for c in self.journal for parent in c["lineage"]["parents"]}
        kept = parents | {c["id"] for c in self.front}
        for c in self.journal:
            size = c["scores"]["size_mb"]
            c["scores"] |= {"divergence_1": 0.1, "error": 0.6}
            for name in self.TARGETS:
                c["scores"] |= {f"decode_ms@{name}": self.predicted(size, name)["decode_ms"]}
                c["scores"] |= {f"kv_bytes_per_token@{name}": 512.0 * (1 + c["id"] % 4)}
            if c["id"] > 20 and c["id"] not in kept:
                c["stopped"] = ("hurdle 1", "hurdle 2", "failed: 3 workers died on it <i>")[c["id"] % 3]
                c["feasible"] = False
                del c["scores"]["loss"], c["scores"]["error"]
        self.write_journal()
        scores = {c["id"]: c["scores"] for c in self.journal}
        for file in ("front.json", "finalists.json"):
            self.change(file, lambda e: {**e, "scores": scores.get(e["id"], e["scores"])})
            content = read_json(self.search_dir / file)
            for name, value in content["targets"].items():
                for e in value if isinstance(value, list) else [*value["finalists"], *value["baselines"]]:
                    e["predicted"] = self.predicted(e["scores"]["size_mb"], name)
                    if name == "phone":
                        e["measured"] = e["sample"] = e["runtime_test"] = None
            write_json(self.search_dir / file, content)
        write_text(self.search_dir / "config.yaml", CONFIG_OF_EVERYTHING)
        write_json(self.search_dir / "hardware.json", {"targets": {name: self.hardware() for name in self.TARGETS}})
        write_json(self.search_dir / "sensitivity.json", self.sensitivity())

    def sensitivity(self) -> dict[str, Any]:
        genes = []
        for i, gene in enumerate(self.space):
            steps = [(len(gene.choices) - 1 - k) / 8 for k in range(len(gene.choices))]
            rises: list[float | None] = [round((1 + i % 5) * step**3, 4) for step in steps]
            if gene.name == "layers.3.mlp.down_format":
                rises[0] = None
            errors = [None if rise is None else 0.0007 for rise in rises]
            saved = [1e5 * step for step in steps]
            listed = {"name": gene.name, "kind": gene.kind, "choices": list(gene.choices)}
            genes.append({**listed, "rise": rises, "standard_error": errors, "divergence": rises, "bytes_saved": saved})
        reference = {"genome": list(self.space.largest), "loss": 2.6, "bytes": 5e6}
        content = {"split": "gate", "sequences": 32, "sequence_length": 256, "reference": reference, "genes": genes}
        return {**content, "findings": ["o projections <b>need</b> Q8_0."]}

    @staticmethod
    def hardware() -> dict[str, Any]:
        inventory = {"Q8_0.weights": 1000.0}
        probes = [Probe((i,), inventory, {"decode_ms": 1.0, "ttft_ms": 2.0}) for i in range(9)]
        lost = Probe((9,), inventory, None, "too wide")
        errors = {"decode_ms": 0.0321, "ttft_ms": 0.011}
        return HardwareModel({}, errors, [*probes, lost], {"n_threads": 1}, "A <b>CPU</b>").to_json()

    @staticmethod
    def predicted(size: float, target: str) -> dict[str, float]:
        slow = {"one_thread": 1.0, "two_threads": 0.6, "phone": 3.0}[target]
        p50 = slow * (0.42 + 0.5 * size)
        return {
            "ttft_ms": 12.3 * slow * size,
            "decode_ms": p50,
            "decode_p95_ms": 1.3 * p50,
            "peak_memory_mb": 31 + 2 * size,
        }


CONFIG_OF_EVERYTHING = """\
run: runs/demo
search: main
seed: 7
workers: ray
eval_sequences: 64
hurdles: {levels: [{sequences: 2, keep: 0.25}, {sequences: 8, keep: 0.4}]}
budget: {size_mb: 1.5, decode_ms: 1.1, loss: null}
evolution: {_target_: search.strategies.aging.Aging, fitness: {loss: 1.0, decode_ms: 0.25, error: null}}
objectives:
  loss: {_target_: a}
  size_mb: {_target_: b}
  decode_ms: {_target_: c}
  kv_bytes_per_token: {_target_: d}
  error: {_target_: e}
targets: {one_thread: {hardware: null}, two_threads: {hardware: null}, phone: {hardware: pi/hardware.json}}
"""
