"""Every file below conf/ composes, and what it describes can be built."""

import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search.evolution import Evolution
from search.finetune import FineTuning
from search.objectives import Objective
from search.targets import Target
from supernet.budgets import check_budgets
from supernet.config import CONF, build, register
from supernet.corpus import Corpus
from supernet.data import TokenData
from supernet.errors import UserError
from supernet.fitting import check_trainer
from supernet.gates import Gates
from supernet.genes import Gene, SearchSpace
from supernet.run import build_supernet
from supernet.sandwich import Schedule
from supernet.subnet import extract
from supernet.teacher import Teacher

ROOT_FILES = {"train", "search"}
TRAIN_GROUPS = {
    "data": "data",
    "model": "model",
    "schedule": "schedule",
    "teacher": "teacher",
    "gates": "gates",
    "optimizer": "optimizer",
    "trainer": "trainer",
    "logger": "logger",
}
SEARCH_GROUPS = {
    "evolution": "evolution",
    "hurdles": "hurdles",
    "finetune": "finetune",
    "first_population": "first_population",
}
BLOCKS = {"attention": "attention", "swiglu": "mlp"}  # which part of a layer a block is


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def each(*groups):
    return pytest.mark.parametrize(("group", "name"), [(group, name) for group in groups for name in names(group)])


@contextmanager
def hydra():
    """Compose as the scripts do; other tests and plugins may have left Hydra initialized."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(script, *overrides):
    """Compose, resolve, and name something for what only the user can name."""
    with hydra():
        config = compose(script, list(overrides))
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, ["somewhere"])
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def train(*overrides):
    return composed("train", *overrides)


def search(*overrides):
    return composed("search", "run=runs/x", *overrides)


@pytest.fixture(scope="module")
def plain():
    """Return both scripts' settings without overrides."""
    return train(), search()


def test_no_file_is_left_out():
    """A new group needs a test of its own here."""
    groups = {path.parent.name for path in CONF.rglob("*.yaml") if path.parent != CONF}
    assert groups == {*TRAIN_GROUPS, *SEARCH_GROUPS, "block", "experiment", "formats", "objective", "target", "fitness"}
    assert {path.stem for path in CONF.glob("*.yaml")} == ROOT_FILES


@each(*TRAIN_GROUPS)
def test_each_choice_of_train_composes(group, name, plain):
    config = train(f"{group}={name}")
    others = {key: value for key, value in plain[0].items() if key != group}
    assert {key: value for key, value in config.items() if key != group} == others
    assert set(config) == set(plain[0])


@each(*SEARCH_GROUPS)
def test_each_choice_of_search_composes(group, name, plain):
    config = search(f"{group}={name}")
    assert set(config) == set(plain[1])
    assert all(config[key] == plain[1][key] for key in config if key != group)


@pytest.mark.parametrize("name", [name for name in names("experiment") if name != "compress"])  # see test_import.py
def test_experiments_build(name):
    """The supernet as the experiment sizes it: budgets within reach, a sequence within the context."""
    config = train(f"+experiment={name}")
    assert config.name == name
    assert config.sequence_length <= config.model.context_length
    vocab_size = config.data.vocab_size
    with torch.device("meta"):  # shapes only: an experiment may be large
        supernet = build_supernet(OmegaConf.to_container(config.model), vocab_size)
    check_budgets(supernet.space, supernet, list(config.gates.budgets_mb))
    Gates(supernet.space, max(1, len(config.gates.budgets_mb)), config.gates.keep_bias)
    schedule = build(config.schedule)
    assert {schedule.kind(step) for step in range(schedule.steps)} == {"alone", "joint", "gates"}
    tokens = torch.zeros(1, 3, dtype=torch.int64, device="meta")
    logits = supernet(tokens, supernet.space.decode(supernet.space.smallest))
    assert logits.shape == (1, 3, vocab_size)


@each("formats")
def test_families_of_formats_build(group, name):
    """A family replaces the formats of every projection, and what it offers all of them is a baseline."""
    config = train("+experiment=llama_like", f"+formats={name}", "gates.budgets_mb=[]")
    with torch.device("meta"):
        supernet = build_supernet(OmegaConf.to_container(config.model), 64)
    usual = train("+experiment=llama_like").model.blocks
    assert all(config.model.blocks[b][k] != v for b in usual for k, v in usual[b].items() if k.endswith("_formats"))
    assert len(supernet.space.uniform_formats) > 1


@each("model")
def test_models_build(group, name):
    config = train(f"model={name}")
    with torch.device("meta"):
        supernet = build_supernet(OmegaConf.to_container(config.model), 64)
    assert supernet.space.largest


@each("block")
def test_subnets_of_every_block_compute_what_the_supernet_computes(group, name):
    """The contract of conf/block/: neither extraction nor order changes anything, at a size that is quick to try."""
    from supernet.ordering import order_by_importance
    from supernet.randomness import generator

    part = BLOCKS[name]
    config = train(f"block@model.blocks.{part}={name}", "model.n_layers=2", "model.d_model=[128,256]")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = build_supernet(OmegaConf.to_container(config.model), 64)
    tokens, rng = torch.arange(24).reshape(2, 12), generator(0, name)
    with torch.inference_mode():
        for _ in range(4):
            genome = supernet.space.sample(rng)
            wanted = supernet(tokens, supernet.space.decode(genome))
            error = (extract(supernet, genome)(tokens) - wanted).abs().max() / wanted.abs().max()
            assert error <= 1e-5
        whole = supernet.space.full_precision(supernet.space.largest)
        before = supernet(tokens, whole)
        order_by_importance(supernet, tokens)
        torch.testing.assert_close(supernet(tokens, whole), before, rtol=1e-4, atol=1e-4)


@each("data")
def test_corpora_build(group, name):
    config = train(f"data={name}")
    if config.data.corpus is not None:
        corpus = build(config.data.corpus)
        assert isinstance(corpus, Corpus)
        assert corpus.describe() == OmegaConf.to_container(config.data.corpus)
    if "sampling" in config.data:
        assert build(config.data.sampling).describe() == OmegaConf.to_container(config.data.sampling)
    assert (config.data.corpus is None) == (name == "teacher")


@each("teacher")
def test_teachers_build(group, name, tiny_supernet):
    config = train(f"teacher={name}")
    if config.teacher:
        decoder = extract(tiny_supernet, tiny_supernet.space.largest)
        assert isinstance(build(config.teacher, decoder), Teacher)
    assert bool(config.teacher) == (name != "none")


def test_a_text_of_ones_own_is_packed(tmp_path):
    (tmp_path / "notes").mkdir()
    for i in range(20):
        text = " ".join(f"word{(i * 7 + k * k) % 89}" for k in range(400))
        (tmp_path / "notes" / f"{i}.txt").write_text(text)
    config = train(
        "data=text",
        f"data.corpus.paths={tmp_path}/notes",
        f"data.cache_dir={tmp_path}/cache",
        "data.vocab_size=300",
    )
    data = build(config.data, sequence_length=16)
    assert isinstance(data, TokenData)
    assert data.batch("train", 0, 0, 2, 16).shape == (2, 17)


@each("schedule")
def test_schedules_build(group, name):
    assert isinstance(build(train(f"schedule={name}").schedule), Schedule)


@each("optimizer")
def test_optimizers_build(group, name):
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = build(train(f"optimizer={name}").optimizer)([{"params": [parameter], "weight_decay": 0.0}])
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups[0]["weight_decay"] == 0 < optimizer.param_groups[0]["lr"]


@each("trainer")
def test_trainers_build(group, name):
    import lightning

    settings = train(f"trainer={name}").trainer
    assert settings.pop("checkpoint_every") > 0
    settings.precision = "32-true"
    trainer = build(settings, accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    assert isinstance(trainer, lightning.Trainer)


def test_several_devices_may_leave_parameters_out_of_a_step():
    """A step trains weights or gates, and of the weights those of its nets."""
    trainer = check_trainer(OmegaConf.create({**train().trainer, "accelerator": "cpu", "devices": 2}))
    assert trainer.strategy._ddp_kwargs == {"find_unused_parameters": True}
    assert trainer.world_size == 2


@each("logger")
def test_loggers_build(group, name, tmp_path):
    settings = train(f"logger={name}").logger
    if settings:
        pytest.importorskip(settings["_target_"].partition(".loggers")[0])
        assert build(settings, save_dir=str(tmp_path), name="x", id="x").name
    assert bool(settings) == (name != "none")


@each("evolution")
def test_strategies_build(group, name):
    space = SearchSpace([Gene("w", (1, 2), "width"), Gene("f", ("Q4_0", "F16"), "format")])
    strategy = build(search(f"evolution={name}").evolution)(space, ["loss"], evaluations=10)
    assert isinstance(strategy, Evolution)


@pytest.mark.parametrize("name", names("evolution/fitness"))
@pytest.mark.parametrize("strategy", names("evolution"))
def test_every_strategy_takes_weights(strategy, name):
    config = search(f"evolution={strategy}", f"evolution/fitness={name}", "evolution.fitness.loss=3")
    assert set(config.evolution.fitness) == set(names("objective"))
    assert config.evolution.fitness.loss == 3


@each("objective")
def test_objectives_build(group, name):
    config = search(f"objective=[{name}]", f"budget.{name}=3")
    assert list(config.objectives) == [name] and config.budget[name] == 3
    objective = build(config.objectives[name])
    assert isinstance(objective, Objective) and objective.name == name


@each("target")
def test_targets_build(group, name):
    config = search(f"target={name}", f"+target@exports.extra={name}")
    assert list(config.targets) == [name]
    for key, node in (*config.targets.items(), ("extra", config.exports.extra)):
        target = build(node, name=key)
        assert isinstance(target, Target) and target.name == key


def test_several_targets_compose():
    several = ["llama_cpp", "llama_cpp_two_threads"]
    targets = search(f"target=[{','.join(several)}]", "targets.llama_cpp_two_threads.n_threads=3").targets
    assert list(targets) == several
    assert [node.n_threads for node in targets.values()] == [1, 3]


@each("finetune")
def test_fine_tuning_builds(group, name):
    finetune = build(search(f"finetune={name}").finetune, _recursive_=False)
    assert isinstance(finetune, FineTuning)
    assert "checkpoint_every" in finetune.trainer


def test_every_score_may_have_a_budget(plain):
    assert set(plain[1].budget) == set(names("objective"))
    assert set(plain[1].budget.values()) == {None}


@pytest.mark.parametrize(
    ("script", "override"),
    [
        ("train", "nmae=x"),
        ("train", "batchsize=3"),
        ("train", "schedule.alone_stepz=3"),
        ("train", "model.blocks.mlp.widht=[256]"),
        ("train", "optimizer=sgdd"),
        ("train", "+experiment=nothing"),
        ("train", "batch_size=many"),
        ("search", "seeed=1"),
        ("search", "evolution.poplation=3"),
        ("search", "budget.sise_mb=1"),
        ("search", "target=phone"),
    ],
)
def test_a_typo_is_refused(script, override):
    needed = ["run=runs/x"] if script == "search" else []
    with hydra(), pytest.raises((HydraException, OmegaConfBaseException)):
        compose(script, [*needed, override])


def test_a_typo_in_an_experiment_is_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nbatchsize: 3\n")
    with hydra(), pytest.raises(HydraException, match="batchsize"):
        compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "+experiment=typo"])


@pytest.mark.parametrize("override", ["+schedule.alone_stepz=3", "+model.depth=3", "+model.blocks.mlp.widht=[256]"])
def test_a_key_that_was_added_by_force_is_refused_when_built(override):
    config = train(override)
    with pytest.raises(UserError, match=override[1:].partition("=")[0].rpartition(".")[2]):
        if "model" in override:
            build_supernet(OmegaConf.to_container(config.model), 64)
        else:
            build(config.schedule)


def test_a_search_needs_a_run():
    with hydra():
        assert OmegaConf.missing_keys(compose("search")) == {"run"}


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_targets_are_importable_by_name(path):
    """A target that is only named in an optional file still has to exist."""
    for target in re.findall(r"_target_:\s*([\w.]+)", path.read_text(encoding="utf-8")):
        if target.startswith(("supernet.", "search.")):
            module, _, name = target.rpartition(".")
            file = Path(CONF.parent, *module.split("."))
            source = file.with_suffix(".py") if file.with_suffix(".py").exists() else file / "__init__.py"
            assert re.search(rf"^(class|def) {name}\b", source.read_text(encoding="utf-8"), re.M)
