"""The report from synthetic files of a run: complete, with parts missing, and with hostile text."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from search.report import write_report
from search.report.ancestry import ancestry, changes, parents
from search.report.data import read_report_data
from search.report.figures import front
from search.report.grids import DROPPED, format_order, grid
from search.report.history import ends, operator_counts, progress
from search.report.html import Page, format_number
from search.report.lineage import add_lineage, drawing
from search.report.nets import rival
from search.report.page import _strategy
from search.report.scores import axes, bounds, feasible, fitness, objectives, value_of, weights
from search.report.sensitivity import color_scale, heat_maps
from supernet.errors import UserError
from supernet.files import read_json, write_json, write_text
from tests.search.report_run import FORMATS, Everything, Fixture, make_space

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
    judged = read_json(fixture.search_dir / "finalists.json")["targets"]["llama_cpp"]
    best = min(judged["finalists"], key=lambda e: e["fine_tuned"]["valid_loss"])
    (whole,) = [entry for entry in judged["baselines"] if entry["name"] == "largest F16"]
    text = parse(fixture.search_dir / "report.html").text
    assert (
        f"{best['name']}: {best['scores']['size_mb']:.2f} MB, test loss {best['fine_tuned']['test_loss']:.3f}" in text
    )
    rise = best["fine_tuned"]["slice_losses"]["asyncio"] - whole["inherited"]["slice_losses"]["asyncio"]
    assert re.search(rf"asyncio\s*{rise:.3f}", text) and "over that of largest F16" in text and "TFLOPs" in text
    assert "Against uniform" in text
    assert "NSGA2" in text
    assert "1.5 MB" in text
    assert "llama-cli -m export/" in text
    assert "trust_remote_code=True" in text
    assert f"--model_args pretrained=export/{best['id']}/hf,trust_remote_code=True --tasks" in text


def test_what_a_runtimes_own_quantizer_makes_stands_beside_the_others(fixture: Fixture) -> None:
    data = read_report_data(fixture.search_dir)
    *others, own = data.baselines["llama_cpp"]
    assert own["name"] == "llama.cpp Q4_K_M" and own["name"] in parse(fixture.search_dir / "report.html").text
    sized = {**others[0], "scores": own["scores"]}
    assert rival(data, "llama_cpp", sized) is own
    # A picture of inherited weights has no place for it, one of what was measured has.
    assert value_of(data, own, "loss") is None
    assert value_of(data, own, "decode_ms") == own["measured"]["decode_ms"]


def test_a_pretrained_models_text_and_padding_are_shown(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    summary, path = fixture.run / "supernet" / "summary.json", fixture.search_dir / "finalists.json"
    padded = {"model.blocks.mlp.width": [172, 192]}
    pretrained = {"path": f"models/{HOSTILE}.bin", "kind": "llama2.c", "padded": padded}
    write_json(summary, {**read_json(summary), "pretrained": pretrained, "ordered_on": 16384})
    content = read_json(path)
    baselines = content["targets"]["llama_cpp"]["baselines"]
    own = {
        "name": "original F16",
        "genome": None,
        "fine_tuned": None,
        "sample": "Once upon a time there was an original.",
    }
    baselines.append({**baselines[-1], **own, "inherited": baselines[0]["inherited"]})
    first, second, *_ = content["targets"]["llama_cpp"]["finalists"]
    first["trial"], second["trial"] = {"inherited": 2.0, "original": 1.9}, {"inherited": 1.9, "original": 2.0}
    write_json(path, content)
    text = parse(write_report(fixture.search_dir)).text
    assert "model.blocks.mlp.width from 172 to 192" in text and HOSTILE in text
    assert "in order of importance on 16,384 tokens of the training split" in text
    assert text.index("there was an original.") < text.index("largest F16')")  # the first of the cards
    assert "Original: the pretrained model as it came" in text
    assert f"Fine-tuned from its weights, cut to size: {first['name']}. " in text
    write_json(summary, {**read_json(summary), "pretrained": {**pretrained, "padded": {}}, "ordered_on": 0})
    text = parse(write_report(fixture.search_dir)).text
    assert "Nothing had to be padded" in text and "in order of importance" not in text


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert format_number(-1e-6, 3) == "0.000" and format_number(-0.0004, 1, percent=True) == "0.0%"
    assert format_number(-0.5, 1) == "-0.5" and format_number(-1e-6, 2, signed=True) == "+0.00"
    assert format_number(-1234.5, 1) == "-1,234.5"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    none = {"measured": None, "sample": None, "export": None, "runtime_test": None, "fine_tuned": None}
    fixture.change("finalists.json", lambda e: {**e, **none})
    fixture.change("front.json", lambda e: {**e, "measured": None})
    for name in ("gates.json", "summary.json", "metrics.csv"):
        (fixture.run / "supernet" / name).unlink()
    (fixture.search_dir / "config.yaml").unlink()
    text = parse(write_report(fixture.search_dir)).text
    assert "the runtime is not installed, which adds latency, memory and sample text: pip install -e '.[gguf]'" in text
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


def test_ancestry_is_complete_and_drawn(fixture: Fixture) -> None:
    data = read_report_data(fixture.search_dir)
    for entry in data.finalists["llama_cpp"]:
        found = ancestry(data, entry)
        assert found is not None
        assert not parents(found.line[0])
        for parent, child in pairwise(found.line):
            assert parent["id"] in parents(child)
        for member in found.members.values():
            assert set(parents(member)) <= set(found.members)
        svg = drawing(data, "llama_cpp", found)
        places = {(lane, found.members[i]["lineage"]["generation"]) for i, lane in found.lanes.items()}
        assert len(places) == len(found.lanes) == len(found.members)  # nobody is missing or covers another
        assert svg.count("<path") == sum(len(parents(member)) for member in found.members.values())
        for i in found.members:
            assert f"candidate {i}, generation" in svg


def test_changes_say_what_is_new_and_what_the_other_parent_gave(fixture: Fixture) -> None:
    data = read_report_data(fixture.search_dir)
    children = [c for c in data.candidates if len(parents(c)) == 2]
    given = 0
    for child in children:
        architecture = data.space.decode(tuple(child["genome"]))
        for change in changes(data.space, data.by_id, child):
            assert architecture[change.gene] == change.after != change.before
            if change.donor is not None:
                given += 1
                assert data.space.decode(tuple(data.by_id[change.donor]["genome"]))[change.gene] == change.after
    assert given


def test_a_long_ancestry_is_cut_and_says_so(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.report.ancestry.MAX_DRAWN", 1)
    data = read_report_data(fixture.search_dir)
    oldest = max(data.candidates, key=lambda c: len(found.members) if (found := ancestry(data, c)) else 0)
    found = ancestry(data, oldest)
    assert found is not None
    assert len(found.lanes) == len(found.line) + 1 < len(found.members)
    page = Page("test")
    entry = {**oldest, "name": "finalist"}
    add_lineage(page, replace(data, finalists={"llama_cpp": [entry]}, baselines={}), "llama_cpp")
    assert f"{len(found.members) - len(found.lanes)} ancestors farther from it are in the table only" in page.html()


def test_progress_never_worsens_and_counts_the_dominated_share(fixture: Fixture) -> None:
    data = read_report_data(fixture.search_dir)
    running = progress(data, "llama_cpp")
    volume = [v for v in running.hypervolume if v is not None]
    best = [v for v in running.best if v is not None]
    assert running.fitness == [None] * len(data.candidates)
    assert volume == sorted(volume)
    assert best == sorted(best, reverse=True)
    points = np.array([[c["scores"][k] for k in axes(data, "llama_cpp")] for c in data.candidates if c["feasible"]])
    scaled = (points - points.min(0)) / np.ptp(points, axis=0)
    spots = np.random.default_rng(0).random((20_000, 2))
    share = np.mean([(scaled <= spot).all(1).any() for spot in spots])
    assert volume[-1] == pytest.approx(share, abs=0.02)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    return Everything(tmp_path_factory.mktemp("everything"))


def test_report_of_everything(everything: Everything) -> None:
    links = parse(write_report(everything.search_dir))
    for expected in (
        "phone was measured on another device (pi/hardware.json)",
        "size ≤ 1.5 MB; decode p50 ≤ 1.1 ms/token",
        "The same front over the other objectives",
        "Predicted against measured",
        "ms/token (predicted)",
        "best fitness",
        "a model fitted to 9 nets measured on A <b>CPU</b> (n_threads 1); 1 more could not be built",
        "decode p50 3.2%, TTFT 1.1%",
        "stopped at hurdle 1",
        "failed: 3 workers died on it <i>",
        "scored to the end",
        "o projections <b>need</b> Q8_0.",
        "32 sequences of the gate split",
    ):
        assert expected in links.text + everything.search_dir.joinpath("report.html").read_text()
    assert all(reference.startswith("#") for reference in links.references)
    assert "nan" not in links.text


def test_heat_maps_show_every_choice_but_the_dearest(everything: Everything, fixture: Fixture) -> None:
    write_report(everything.search_dir)
    assert (everything.search_dir / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    data = read_report_data(everything.search_dir)
    formats, structure = heat_maps(data).values()
    assert formats.columns[:4] == [*(f"attention qkv.{name}" for name in FORMATS[:3]), "attention o.Q4_0"]
    assert structure.columns == [
        *("attention.drop", "attention.kv_heads 1", "attention.heads_per_kv 1"),
        *("mlp.width 128", "mlp.width 256", "mlp.drop"),
    ]
    cells = [c for laid_out in (formats, structure) for _, row in laid_out.rows for c in row if c]
    cells += [*formats.single, *structure.single]
    genes = data.sensitivity["genes"]
    assert len(cells) == sum(len(gene["choices"]) - 1 for gene in genes) - 1  # one is not known
    by_text = {cell.text: cell.color for cell in cells}
    assert all(by_text[cell.text] == cell.color for cell in cells)  # one scale in both
    assert by_text[f"{color_scale(data)[-1][0]:.3f}"] == color_scale(data)[-1][1]
    assert "Sensitivity" not in parse(fixture.search_dir / "report.html").text
    assert not (fixture.search_dir / "sensitivity.png").exists()


def test_scores_of_several_targets_are_told_apart(everything: Everything) -> None:
    data = read_report_data(everything.search_dir)
    assert objectives(data, "phone") == ["loss", "size_mb", "decode_ms@phone", "kv_bytes_per_token@phone", "error"]
    assert axes(data, "phone") == ("size_mb", "loss")
    assert bounds(data, "phone") == {"size_mb": 1.5, "decode_ms@phone": 1.1}
    fits = feasible(data, "phone")
    assert fits < feasible(data, "two_threads")
    for c in data.whole:
        small, fast = c["scores"]["size_mb"] <= 1.5, c["scores"]["decode_ms@phone"] <= 1.1
        assert (c["id"] in fits) == (small and fast)


def test_fitness_counts_the_mean_over_targets(everything: Everything) -> None:
    data = read_report_data(everything.search_dir)
    scores = data.whole[0]["scores"]
    decode = [scores[f"decode_ms@{name}"] for name in everything.TARGETS]
    assert weights(data) == {"loss": 1.0, "decode_ms": 0.25}
    assert fitness(weights(data), data.whole[0]) == pytest.approx(scores["loss"] + 0.25 * sum(decode) / 3)
    running = [value for value in progress(data, "one_thread").fitness if value is not None]
    assert running == sorted(running, reverse=True)
    stopped = next(c for c in data.candidates if c["stopped"])
    assert fitness(weights(data), stopped) is None


def test_every_candidate_has_one_end(everything: Everything) -> None:
    data = read_report_data(everything.search_dir)
    assert ends(data.candidates) == ["hurdle 1", "hurdle 2", "failed"]
    for _, counts in operator_counts(data):
        assert counts["evaluated"] == sum(counts[end] for end in ("scored", *ends(data.candidates)))


def test_a_search_for_one_score_and_with_nothing_scored_is_reported(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    for c in fixture.journal:
        c["scores"] = {"decode_ms": c["scores"]["size_mb"]}
    fixture.write_journal()
    for name in ("front.json", "finalists.json"):
        fixture.change(name, lambda e: {**e, "scores": {"decode_ms": 1.0}})
    write_report(fixture.search_dir)
    for c in fixture.journal:
        c.update(stopped="hurdle 1", feasible=False)
    fixture.write_journal()
    assert "60 of them stopped early" in parse(write_report(fixture.search_dir)).text


def test_divergences_are_drawn_by_decades(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    config = fixture.search_dir / "config.yaml"
    write_text(config, config.read_text().replace("loss: null, decode_ms", "divergence: 0.01, decode_ms"))
    scores = [{"size_mb": 1.0, "divergence": value} for value in (0.001, 0.1, 10.0, 0.0)]
    for number, c in enumerate(fixture.journal):
        c["scores"] = scores[number % 4]
    fixture.write_journal()
    for name in ("front.json", "finalists.json"):
        fixture.change(name, lambda e: {**e, "scores": {"size_mb": 1.0, "divergence": 0.001}})
    write_report(fixture.search_dir)
    data = read_report_data(fixture.search_dir)
    figure = front(data, "llama_cpp")
    candidates = [y for trace in figure.data if trace.name in ("candidates", "over budget") for y in trace.y]
    assert set(candidates) == {-3.0, -1.0, 1.0, -4.0}
    assert figure.layout.yaxis.ticktext[0] == "0.0001"
    assert -2.0 in {shape.y0 for shape in figure.layout.shapes}
    assert "budget 0.01" in {note.text for note in figure.layout.annotations}


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


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, "–"),
        ({"evolution._target_": "search.strategies.uniform.Uniform"}, "Uniform"),
        ({"evolution._target_": "a.Surrogate", "evolution.vary": ["width", "switch", "format"]}, "Surrogate"),
        ({"evolution._target_": "a.Aging", "evolution.vary": ["width", "switch"]}, "Aging, width and switch only"),
    ],
)
def test_the_strategy_says_what_it_varies(settings, shown):
    assert _strategy(SimpleNamespace(settings=settings)) == shown
