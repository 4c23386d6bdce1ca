"""The report from synthetic files of a run: complete, with parts missing, and with hostile text."""

import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.grids import DROPPED, format_order, grid
from search.report import write_report
from search.report_data import lineage, progress, read_report_data
from supernet.errors import UserError
from supernet.files import read_json, write_json, write_text
from supernet.genes import Gene, Genome, SearchSpace

FORMATS = ("Q4_0", "Q5_0", "Q8_0", "F16")
OPERATORS = ("mutate", "cross", "gate mutate")
HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x.png>"


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
        lists["baselines"].append(self.entry(self.candidate(self.space.largest, None), "largest F16", False))
        members = [{**c, "architecture": {}, "measured": self.measured(c)} for c in self.front]
        write_json(self.run / "supernet" / "space.json", {"genes": self.space.to_json()})
        write_json(self.search_dir / "front.json", {"targets": dict.fromkeys(targets, members)})
        write_json(self.search_dir / "finalists.json", {"targets": dict.fromkeys(targets, lists)})
        write_text(self.search_dir / "journal.jsonl", "".join(json.dumps(c) + "\n" for c in self.journal))
        write_text(self.search_dir / "config.yaml", CONFIG)
        for entry in lists["finalists"]:
            write_text(self.search_dir / str(entry["export"]) / "model.gguf", "")
            write_text(self.search_dir / str(entry["export"]) / "hf" / "config.json", '{"auto_map": {}}')
        self.write_supernet()

    def candidate(self, genome: Genome, i: int | None) -> dict[str, Any]:
        values = [index / max(1, len(g.choices) - 1) for g, index in zip(self.space, genome, strict=True)]
        size = 0.4 + 4.6 * float(np.mean(values)) ** 2
        loss = 2.55 + 0.42 / size + 0.05 * float(self.rng.standard_normal())
        scores = {"loss": round(loss, 4), "size_mb": round(size, 4)}
        return {"id": i, "genome": list(genome), "scores": scores, "feasible": size <= 1.5}

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
                good = sorted(
                    journal, key=lambda c: c["scores"]["loss"] + 4 * max(0, c["scores"]["size_mb"] - 1.5)
                )
                parents = [good[int(self.rng.integers(8))] for _ in range(1 + (operator == "cross"))]
                genes = set(self.rng.choice(len(self.space), 3).tolist())
                genome = self.space.canonical(
                    [
                        int(self.rng.integers(len(g.choices))) if j in genes else parents[0]["genome"][j]
                        for j, g in enumerate(self.space)
                    ]
                )
            changed = (
                [g.name for g, a, b in zip(self.space, genome, parents[0]["genome"], strict=True) if a != b]
                if parents
                else []
            )
            ids = [p["id"] for p in parents]
            origin = {"generation": i // 20, "operator": operator, "parents": ids, "changed": changed}
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
            "prefill_ms": 12 * size,
            "prefill_tokens": 128,
            "decode_ms_p50": p50,
            "decode_ms_p95": 1.3 * p50,
        }
        return {
            **times,
            "peak_memory_mb": 30 + 2 * size,
            "kv_bytes_per_token": 2048,
            "file_size_mb": size + 0.1,
        }

    def entry(self, c: dict[str, Any], name: str, tuned: bool) -> dict[str, Any]:
        loss = c["scores"]["loss"]

        def splits(gain: float) -> dict[str, float]:
            valid, test = loss - gain, loss - gain + 0.03
            accuracies = {"valid_accuracy": math.exp(-valid / 3), "test_accuracy": math.exp(-test / 3)}
            return {"valid_loss": valid, "test_loss": test, **accuracies}

        return {
            "id": c["id"],
            "name": name,
            "genome": c["genome"],
            "architecture": self.space.decode(tuple(c["genome"])),
            "scores": {"size_mb": c["scores"]["size_mb"]},
            "inherited": splits(0.0),
            "fine_tuned": splits(0.08) if tuned or name.startswith("uniform") else None,
            "measured": self.measured(c),
            "export": f"export/{c['id']}" if tuned else None,
            "sample": f"import os\n\n\ndef main(path):\n    return os.path.join(path, '{name}')\n" * 3,
            "llama_cpp_test": {"loss": loss - 0.05, "accuracy": 0.41},
        }

    def uniform(self, name: str) -> dict[str, Any]:
        genome = (
            self.space.with_format(self.space.largest, name) if name in FORMATS[:3] else self.space.largest
        )
        return self.entry(self.candidate(genome, None), f"uniform {name}", False)

    def write_supernet(self) -> None:
        folder, n_steps = self.run / "supernet", 40
        history = []
        for step in range(n_steps):
            sharp = 4 * step / n_steps
            budgets = []
            for lean in (-1, 1):
                logits = [
                    sharp * lean * np.arange(len(g.choices)) * np.sin(1 + 7 * i)
                    for i, g in enumerate(self.space)
                ]
                budgets.append([(np.exp(row) / np.exp(row).sum()).tolist() for row in logits])
            mbs = [1.0 + 1.5 * math.exp(-step / 8), 1.5 + 1.2 * math.exp(-step / 9)]
            record = {"step": 400 + 10 * step, "temperature": 4 * 0.95**step, "expected_mb": mbs}
            history.append({**record, "probabilities": budgets})
        names = [gene.name for gene in self.space]
        write_json(folder / "gates.json", {"budgets_mb": [1.0, 1.5], "genes": names, "history": history})
        table = [{"name": n, "size_mb": s, "valid_loss": v, "valid_accuracy": 0.4} for n, s, v in NETS]
        phases = [{"name": n, "steps": s, "seconds": 2.0 * s} for n, s in (("warm-up", 400), ("gates", 400))]
        counts = {"parameters": 1_312_640, "steps": 800, "tokens": 13_107_200, "seconds": 1600.5}
        write_json(folder / "summary.json", {"table": table, "phases": phases, **counts})
        rows = [
            "step,phase,loss_largest,loss_smallest,loss_sampled,loss_gates,temperature,expected_mb,tokens_per_s"
        ]
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
threads: 1
budget: {size_mb: 1.5}
evolution: {_target_: search.evolution.NSGA2, population: 20}
objective: [loss, size_mb]
"""


class Links(HTMLParser):
    """Collects every reference a browser would follow by itself, and the text outside of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.scripts = 0
        self.text = ""
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.scripts += tag == "script"
        self.references += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data


def parse(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return Fixture(tmp_path_factory.mktemp("report"))


def test_complete_report_is_self_contained(fixture: Fixture) -> None:
    path = write_report(fixture.search_dir)
    assert path == fixture.search_dir / "report.html"
    html, links = path.read_text(encoding="utf-8"), parse(path)
    assert all(reference.startswith("#") for reference in links.references)
    assert html.count("Plotly.newPlot(") >= 6
    assert html.count("plotly.js v") == 1
    for name in ("front", "finalists", "gates", "progress"):
        assert (fixture.search_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(fixture.search_dir.glob(".*.tmp"))


def test_headline_names_the_finalist_with_the_lowest_valid_loss(fixture: Fixture) -> None:
    finalists = read_json(fixture.search_dir / "finalists.json")["targets"]["llama_cpp"]["finalists"]
    best = min(finalists, key=lambda e: e["fine_tuned"]["valid_loss"])
    text = parse(write_report(fixture.search_dir)).text
    assert (
        f"{best['name']}: {best['scores']['size_mb']:.2f} MB, test loss {best['fine_tuned']['test_loss']:.3f}"
        in text
    )
    assert "Against uniform" in text
    assert "NSGA2" in text
    assert "1.5 MB" in text
    assert "llama-cli -m export/" in text
    assert "trust_remote_code=True" in text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    none = {"measured": None, "sample": None, "export": None, "llama_cpp_test": None, "fine_tuned": None}
    fixture.change("finalists.json", lambda e: {**e, **none})
    fixture.change("front.json", lambda e: {**e, "measured": None})
    for name in ("gates.json", "summary.json", "metrics.csv"):
        (fixture.run / "supernet" / name).unlink()
    (fixture.search_dir / "config.yaml").unlink()
    text = parse(write_report(fixture.search_dir)).text
    assert "llama-cpp-python is not installed: pip install -e '.[gguf]' adds latency" in text
    assert "Nothing was exported" in text
    assert "–" in text
    assert "nan" not in text
    assert not (fixture.search_dir / "gates.png").exists()


def test_gates_without_history_are_left_out(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    write_json(fixture.run / "supernet" / "gates.json", {"budgets_mb": [], "genes": [], "history": []})
    assert "Gates over training" not in parse(write_report(fixture.search_dir)).text


def test_single_candidate_and_several_targets(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path, n_candidates=1, targets=("llama_cpp", "huggingface"))
    text = parse(write_report(fixture.search_dir)).text
    assert "Front on llama_cpp" in text
    assert "Front on huggingface" in text


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    clean = parse(write_report(fixture.search_dir))
    fixture.change("finalists.json", lambda e: {**e, "name": e["name"] + HOSTILE, "sample": "\x00" + HOSTILE})
    journal = [{**c, "lineage": {**c["lineage"], "operator": HOSTILE}} for c in fixture.journal]
    write_text(fixture.search_dir / "journal.jsonl", "".join(json.dumps(c) + "\n" for c in journal))
    links = parse(write_report(fixture.search_dir))
    assert links.scripts == clean.scripts
    assert all(reference.startswith("#") for reference in links.references)
    assert "\x00" not in links.text
    assert HOSTILE in links.text


def test_same_files_give_the_same_page(fixture: Fixture) -> None:
    assert write_report(fixture.search_dir).read_bytes() == write_report(fixture.search_dir).read_bytes()


def test_missing_search_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finalists"):
        write_report(tmp_path / "runs" / "x" / "search" / "main")


def test_torn_last_line_of_the_journal_is_dropped(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    with (fixture.search_dir / "journal.jsonl").open("a") as file:
        file.write('{"id": 60, "gen')
    assert len(read_report_data(fixture.search_dir).candidates) == 60


def test_lineage_ends_in_the_first_population(fixture: Fixture) -> None:
    data = read_report_data(fixture.search_dir)
    line = lineage(data, data.finalists["llama_cpp"][0])
    assert not line[0]["lineage"]["parents"]
    for parent, child in pairwise(line):
        assert parent["id"] in child["lineage"]["parents"]


def test_progress_never_worsens_and_counts_the_dominated_share(fixture: Fixture) -> None:
    data = read_report_data(fixture.search_dir)
    running = progress(data)
    volume = [v for v in running.hypervolume if v is not None]
    best = [v for v in running.best if v is not None]
    assert volume == sorted(volume)
    assert best == sorted(best, reverse=True)
    points = np.array([[c["scores"][k] for k in data.axes] for c in data.candidates if c["feasible"]])
    scaled = (points - points.min(0)) / np.ptp(points, axis=0)
    spots = np.random.default_rng(0).random((20_000, 2))
    share = np.mean([(scaled <= spot).all(1).any() for spot in spots])
    assert volume[-1] == pytest.approx(share, abs=0.02)


def test_grid_blanks_what_a_dropped_block_leaves_undecided() -> None:
    space = make_space()
    architecture = space.decode(space.largest) | {"layers.2.mlp.active": 0}
    laid_out = grid(space, space.encode(architecture))
    cells = dict(zip(laid_out.columns, dict(laid_out.rows)["layers.2"], strict=True))
    texts = {name: cell.text for name, cell in cells.items() if cell is not None}
    assert texts["mlp.active"] == DROPPED
    assert {texts[name] for name in ("mlp.width", "mlp.down_format", "mlp.gate_up_format")} == {""}
    assert texts["attention.qkv_format"] == "F16"
    assert format_order(space) == list(FORMATS)


def test_import_is_light() -> None:
    check = "import sys, search.report; sys.exit(any(m in sys.modules for m in ('plotly', 'matplotlib', 'torch')))"
    assert subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2]).returncode == 0
