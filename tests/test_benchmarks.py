"""The benchmarks' settings compose, and their tables hold what was not reached; they are run by hand."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from supernet.files import write_json
from supernet.subnet import extract

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_every_setting_of_the_grid_composes():
    names = ("common", "headline", "ablation", "search_parts")
    common, headline, ablation, parts = (importlib.import_module(name) for name in names)
    for change in ablation.CHANGES.values():
        common.compose("train", "+experiment=llama_like", *change.train)
        common.compose("search", "run=somewhere", *change.search)
    for method in headline.METHODS.values():
        assert common.compose("search", "run=somewhere", *method.settings).run == "somewhere"
    arguments = SimpleNamespace(run="somewhere", evaluations=40, eval_sequences=8)
    kept = {parts.search_config(arguments, name, seed).search for name in parts.VARIANTS for seed in (0, 1)}
    assert len(kept) == 2 * len(parts.VARIANTS)


def test_the_table_shows_what_was_not_reached(tmp_path):
    table = importlib.import_module("headline_table")
    scores = {"valid_loss": 2.0, "test_loss": 2.1, "test_accuracy": 0.4, "slice_losses": {"re": 1.0, "os": 3.0}}
    worse = {**scores, "valid_loss": 3.0}
    entry = {"name": "a", "inherited": scores, "fine_tuned": worse, "measured": None, "scores": {"size_mb": 1.0}}
    whole = table.net("F16", entry)
    assert whole["test_loss"] == 2.1 and whole["bytes"] == 1_000_000  # before fine-tuning: it was better
    hurt = {"test_loss": 2.2, "slice_losses": {"re": 1.5, "os": 3.1}}
    rows = [
        {"method": "joint", "budget": 20.0, "seed": 0, **table.cell(whole, whole)},
        {"method": "other", "budget": 20.0, "seed": 0, **table.cell(None, whole)},
        {"method": "other", "budget": 30.0, "seed": 0, **table.cell({**whole, **hurt}, whole)},
        {"method": "joint", "budget": 30.0, "seed": 0, **table.cell(whole, whole)},
    ]
    assert (rows[2]["hardest_hit"], rows[2]["hardest_hit_rise"]) == ("re", 0.5)
    parts = ("shared", "search", "each", "divided", "whole")
    cost = {"seed": 0, "largest_over_alone": 1.0, **dict.fromkeys(parts, 1e15)}
    other = {**cost, "seed": 1, "structure": 3e15, "largest_over_alone": 1.2, "cost_ratio": 2.0}
    content = table.summary(rows, [cost, other], [20.0, 30.0, 40.0])
    first, second = content["compared"]
    assert first["rival"] is None and first["gain"] is None and rows[1].keys() == rows[0].keys()
    assert second["rival"] == "other" and second["gains"] == pytest.approx([0.1]) and second["clear"] is None
    assert second["by_accuracy"]["gain"] == 0.0
    shown = table.markdown(content)
    assert "| 20 % | other | not reached |" in shown
    first, second, mean = shown.splitlines()[-3:]
    assert first == "| 0 | 1.000 |  | 1.000 | 1.000 | 1.000 | 1.000 |  | 1.0000 |"
    assert second == "| 1 | 1.000 | 3.000 | 1.000 | 1.000 | 1.000 | 1.000 | 2.00 | 1.2000 |"
    assert mean.startswith("| mean | 1.000 ± 0.000 | 3.000 |") and mean.endswith("| 2.00 | 1.1000 ± 0.1414 |")
    table.draw(content, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_what_was_recorded_with_other_settings_is_not_overwritten(tmp_path, monkeypatch):
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert common.recorded("grid", {"a": 1}) == {}
    content = {"settings": {"a": 1, "b": [2]}, "rows": [{"seed": 0}]}
    write_json(tmp_path / "grid.json", content)
    assert common.recorded("grid", {"a": 1, "b": [2]})["rows"] == content["rows"]
    with pytest.raises(SystemExit, match=r"grid\.json was recorded with other settings \(a, c\): --name another"):
        common.recorded("grid", {"a": 2, "b": [2], "c": 3})


def test_other_seeds_stay_in_the_record(tmp_path, monkeypatch):
    common, headline = (importlib.import_module(name) for name in ("common", "headline"))
    for module in (common, headline.headline_table):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    row = {"method": "F16", "budget": 100.0, "hardest_hit_rise": 0.0, "test_loss": 2.0, "kept": 1.0, "rise": 0.0}
    row |= dict.fromkeys(headline.headline_table.COLUMNS, 1.0)
    for name in ("run", "costs"):
        monkeypatch.setattr(headline.Grid, name, lambda grid: {})
    monkeypatch.setattr(headline.Grid, "rows", lambda grid: [{**row, "seed": grid.seed}])
    monkeypatch.setattr(headline.headline_table, "write", lambda name, content: None)
    for seeds in (["0", "2"], ["1"], ["2"]):
        monkeypatch.setattr(sys, "argv", ["headline.py", "--name", "grid", "--methods", "llama.cpp", "--seeds", *seeds])
        headline.main()
    assert common.read_json(tmp_path / "grid.json")["seeds"] == [0, 1, 2]


def test_the_effects_of_a_change_are_paired_by_seed(tmp_path):
    ablation = importlib.import_module("ablation")
    keys = ("test_loss", "accuracy", "inherited_test_loss", "largest_valid_loss")
    losses = {("all parts", 0): 2.0, ("all parts", 1): 2.5, ("other", 1): 2.6}
    rows = [{"change": c, "seed": s, **dict.fromkeys(keys, loss)} for (c, s), loss in losses.items()]
    effects = ablation._effects(rows)
    rises = {e["change"]: e["rises"]["test_loss"] for e in effects}
    assert rises["all parts"] == [0, 0] and rises["other"] == pytest.approx([0.1])
    # One seed: not the difference of means over other seeds.
    assert "| other | 1 | +0.1000 | +10.00 |" in ablation._markdown(effects)
    ablation.draw(effects, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_supernets_of_the_shapes_of_known_llamas_have_their_parameters():
    memory_plan = importlib.import_module("memory_plan")
    for name in memory_plan.LLAMAS:
        counted = memory_plan.counted(name)
        assert counted["built"] == counted["known"]


@pytest.mark.slow
def test_trainings_are_measured_with_all_that_they_keep():
    memory_plan = importlib.import_module("memory_plan")
    steps = ("schedule.alone_steps=2", "schedule.joint_steps=2", "schedule.order=1", "trainer.checkpoint_every=2")
    memory_plan.train(["+experiment=smoke", "gates.budgets_mb=[]", "sequence_length=16", "batch_size=2", *steps])


@pytest.mark.slow
def test_a_checkpoint_is_never_in_memory_as_a_whole(tmp_path):
    memory_plan = importlib.import_module("memory_plan")
    weights, shard = memory_plan.save_shards(tmp_path, memory_plan.SHARDED, 50e6)
    (peak,) = memory_plan.in_children("load", [str(tmp_path)], [None])
    assert 0.95 * weights < peak < weights + shard + 0.2 * weights  # twice the weights, were it read at once


def test_compress_judges_windows_that_begin_as_texts_do(tmp_path, tiny_supernet):
    compress = importlib.import_module("compress")
    (tmp_path / "text").write_text("abcdefgh" * 9)
    encoder = SimpleNamespace(encode=lambda text, add_special_tokens: SimpleNamespace(ids=[ord(c) - 90 for c in text]))
    tokenization = SimpleNamespace(tokenizer=encoder, bos="<s>", id_of={"<s>": 3}.get)
    arguments = SimpleNamespace(text=tmp_path / "text", tokens=20, window=9)
    windows = compress._windows(arguments, tokenization)
    assert [w.tolist() for w in windows] == [[3, *range(7, 15)], [3, *range(7, 15)], [3, 7, 8, 9, 10]]

    decoder = extract(tiny_supernet, tiny_supernet.space.largest)
    probabilities = [decoder(w[None]).log_softmax(-1)[0, torch.arange(len(w) - 1), w[1:]] for w in windows]
    assert compress.nll(decoder, windows) == pytest.approx(-torch.cat(probabilities).mean().item(), rel=1e-5)

    row = {"method": "joint", "name": "finalist 1", "bits_per_weight": 4.4, "bytes": 1234, "nll": 1.5, "seed": 0}
    larger = {**row, "name": "finalist 2", "bytes": 2000}
    assert compress._markdown([row, larger]).splitlines()[2:] == [
        "| joint | finalist 2 | 4.40 | 2,000 | 1.5000 | 0 |",
        "| joint | finalist 1 | 4.40 | 1,234 | 1.5000 | 0 |",
    ]
    compress.draw([row, {**row, "method": "original"}], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_scales_are_fitted_in_all_ways(tiny_supernet):
    scales = importlib.import_module("scales")
    whole = extract(tiny_supernet, tiny_supernet.space.largest)
    rounded = {way: scales.stored(whole, "Q4_0", way).freeze_formats().embedding.weight for way in ("absmax", "mse")}
    assert not torch.equal(rounded["absmax"], rounded["mse"])
    learned = scales.stored(whole, "Q4_0", "learned")
    assert all(linear.log_factors is not None for linear in learned.linears())
    assert not torch.equal(learned.freeze_formats().embedding.weight, whole.embedding.weight)

    losses = {("absmax", 0): 2.0, ("absmax", 1): 2.1, ("learned", 0): 2.1, ("learned", 1): 2.4}
    rows = [
        {"format": "Q2_K", "scales": way, "seed": seed, "rounded": 3.0, "test_loss": loss}
        for (way, seed), loss in losses.items()
    ]
    assert scales.markdown(rows).splitlines()[2:] == [
        "| Q2_K | absmax | 3.0000 | 2.0500 |  |",
        "| Q2_K | learned | 3.0000 | 2.2500 | +0.2000 ± 0.1000 |",
    ]


def test_ranks_are_compared_within_bins():
    ranks = importlib.import_module("ranks")

    def nets(size_mb, losses, second):
        three = zip((1, 2, 3), losses, second, strict=True)
        return [
            {
                "bin": size_mb,
                "size_mb": size_mb + w / 100,
                "weights": 100 * size_mb + w,
                "inherited": [a],
                "tuned": [b],
                "alone": [a, b],
            }
            for w, a, b in three
        ]

    # In each bin more weights mean more loss, over all less; in the second bin the second seed turns the ranks round.
    rows = nets(1, (3.0, 3.1, 3.2), (3.0, 3.1, 3.2)) + nets(2, (2.0, 2.1, 2.2), (2.4, 2.2, 2.0))
    result = ranks.compare(rows, 1, 2)
    assert result["within_bins"]["spearman"]["by_pair"] == pytest.approx([1.0, 0.0])
    assert result["params_only"]["spearman"]["by_pair"] == pytest.approx([-1.0, 0.0])
    assert result["over_all"]["params_only"]["spearman"]["max"] > 0.5
    assert [b["spearman"]["within_bins"] for b in result["bins"]] == pytest.approx([1.0, 0.0])
    assert result["between_seeds"]["kendall"]["mean"] == pytest.approx(0.0)
    assert result["tuned"]["spearman"]["by_pair"] == pytest.approx([0.0, 1.0])
    assert result["ceiling"] == {"one": 0.0, "mean": 0.0}  # where two trainings agree by 0, nobody can know
    assert "| inherited loss | 0.50 ± 1.00 |" in ranks.markdown(result)
    for row in rows:
        del row["tuned"]
    result = ranks.compare(rows[:3], 1, 2)
    assert result["ceiling"] == pytest.approx({"one": 1.0, "mean": 1.0})
    assert "tuned" not in result and "briefly" not in ranks.markdown(result)


def test_a_net_is_timed_once_whoever_found_it(toy_space):
    times, space = importlib.import_module("headline_times"), toy_space
    low = space.uniform_formats[0]
    genome = space.with_format(space.largest, low)
    rows = [
        {"method": "joint", "name": "finalist 3", "architecture": space.decode(genome)},
        {"method": "uniform PTQ", "name": low, "architecture": None},
        {"method": "llama.cpp", "name": low, "architecture": None},
    ]
    assert [times._net(row, space) for row in rows] == [genome, genome, low]


def test_searches_are_worth_their_share_of_all_that_was_found():
    parts = importlib.import_module("search_parts")
    high = np.array([1.0, 2.0])
    fronts = {"a": [[(1.0, 0.0), (0.0, 2.0), (0.5, 1.0)]], "b": [[(1.0, 1.0), (0.0, 2.0), (0.9, 1.5)]]}
    rows = parts.compare(fronts, high, [0.5, 1.0], 3)
    assert rows["a"]["hv_3"]["mean"] == pytest.approx(1.0)  # its front is that of all
    assert rows["b"]["hv_3"]["mean"] == pytest.approx(
        (0.1 * 0.6 + 0.1 * 0.35 + 0.9 * 0.1) / (0.1 * 1.1 + 0.5 * 0.6 + 0.5 * 0.1)
    )
    assert rows["a"]["best"][0]["mean"] == 1.0 and rows["b"]["best"][0] is None
    assert "| b | 0.4022 ± 0.0000 | not reached | 1.0000 ± 0.0000 |" in parts.markdown(rows, [0.5, 1.0])
