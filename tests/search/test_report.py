"""The report from synthetic files of a run: complete, with parts missing, and with hostile text."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from search.report import write_report
from search.report.data import read_report_data
from search.report.grids import DROPPED, format_order, grid
from search.report.history import lineage, progress
from supernet.errors import UserError
from supernet.files import read_json, write_json, write_text
from tests.search.report_run import FORMATS, Fixture, make_space

HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x.png>"


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
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

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
    fixture = Fixture(tmp_path_factory.mktemp("report"))
    write_report(fixture.search_dir)
    return fixture


def test_complete_report_is_self_contained(fixture: Fixture) -> None:
    path = fixture.search_dir / "report.html"
    html, links = path.read_text(encoding="utf-8"), parse(path)
    assert all(reference.startswith("#") for reference in links.references)
    assert html.count("Plotly.newPlot(") >= 6
    assert html.count("plotly.js v") == 1
    assert html.count('"showSendToCloud": false') == html.count('<div id="figure-')
    for name in ("front", "finalists", "gates", "progress"):
        assert (fixture.search_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(fixture.search_dir.glob(".*.tmp"))


def test_headline_names_the_finalist_with_the_lowest_valid_loss(fixture: Fixture) -> None:
    finalists = read_json(fixture.search_dir / "finalists.json")["targets"]["llama_cpp"]["finalists"]
    best = min(finalists, key=lambda e: e["fine_tuned"]["valid_loss"])
    text = parse(fixture.search_dir / "report.html").text
    assert (
        f"{best['name']}: {best['scores']['size_mb']:.2f} MB, test loss {best['fine_tuned']['test_loss']:.3f}" in text
    )
    assert "Against uniform" in text
    assert "NSGA2" in text
    assert "1.5 MB" in text
    assert "llama-cli -m export/" in text
    assert "trust_remote_code=True" in text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    none = {"measured": None, "sample": None, "export": None, "runtime_test": None, "fine_tuned": None}
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


def test_text_from_files_is_escaped(tmp_path: Path, fixture: Fixture) -> None:
    clean = parse(fixture.search_dir / "report.html")
    fixture = Fixture(tmp_path)
    fixture.change("finalists.json", lambda e: {**e, "name": e["name"] + HOSTILE, "sample": "\x00" + HOSTILE})
    journal = fixture.search_dir / "journal.jsonl"
    write_text(journal, journal.read_text().replace('"operator":"', '"operator":' + json.dumps(HOSTILE)[:-1]))
    links = parse(write_report(fixture.search_dir))
    assert links.scripts == clean.scripts
    assert all(reference.startswith("#") for reference in links.references)
    assert "\x00" not in links.text
    assert HOSTILE in links.text


def test_same_files_give_the_same_page(fixture: Fixture) -> None:
    before = (fixture.search_dir / "report.html").read_bytes()
    assert write_report(fixture.search_dir).read_bytes() == before


def test_missing_search_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"space\.json is missing"):
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
    heavy = "{'plotly', 'matplotlib', 'torch'}"
    check = f"import sys, search.report; sys.exit(not {heavy}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2]).returncode == 0
