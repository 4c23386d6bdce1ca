"""Every mistake of the user is one line that names it, and harms nothing."""

import shutil

import pytest

from tests.scripts import SEARCH, TRAINING, contents, edit, wait_for, workplace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.getbasetemp())


BRIEF = [f"Text number {number}.\n" for number in range(12)]

TRAIN_MISTAKES = {
    "unknown key": ("sede=1", "sede"),
    "unknown key of a group": ("schedule.joint_step=3", "joint_step"),
    "unknown key of a group, added": ("+schedule.joint_step=3", "joint_step"),
    "unknown key of the optimizer": ("+optimizer.momentum=3", "momentum"),
    "unknown choice of a group": ("optimizer=sgd", "sgd"),
    "unknown experiment": ("+experiment=lama", "experiment"),
    "no override": ("seed", "seed"),
    "word for a number": ("seed=abc", "abc"),
    "word for a number in a group": ("schedule.warmup_steps=abc", "schedule.warmup_steps"),
    "fraction for a count": ("model.n_layers=1.5", "model.n_layers"),
    "word for a gate setting": ("gates.multiplier_lr=abc", "gates.multiplier_lr"),
    "word for a budget": ("gates.budgets_mb=[abc]", "gates.budgets_mb"),
    "no sequences in a step": ("batch_size=0", "batch_size"),
    "no sequences to evaluate": ("eval_sequences=0", "eval_sequences"),
    "no tokens in a sequence": ("sequence_length=0", "sequence_length"),
    "sequence beyond the context": ("sequence_length=65", "model.context_length=64"),
    "no steps": ("schedule.alone_steps=-1", "schedule.alone_steps"),
    "impossible schedule": ("schedule.gate_every=1", "gate_every"),
    "impossible temperature": ("schedule.temperature=[0,1]", "schedule.temperature"),
    "impossible learning rate": ("optimizer.lr=-1", "optimizer"),
    "no checkpoints": ("trainer.checkpoint_every=0", "trainer.checkpoint_every"),
    "impossible precision": ("trainer.precision=3", "Precision 3"),
    "weights in half precision": ("trainer.precision=bf16-true", "trainer.precision=bf16-true rounds"),
    "weights in double precision": ("trainer.precision=64-true", "trainer.precision=64-true"),
    "gates that climb": ("gates.lr=-1", "gates.lr must be 0 or more"),
    "a price below zero": ("gates.multiplier_lr=-1", "gates.multiplier_lr must be 0 or more"),
    "a push away from the budget": ("gates.damping=-1", "gates.damping must be 0 or more"),
    "impossible accelerator": ("trainer.accelerator=abacus", "abacus"),
    "width of no group": ("model.blocks.mlp.width=[48]", "a width of 48 does not fit Q4_0"),
    "falling widths": ("model.d_model=[64,32]", "model.d_model"),
    "unknown format": ("model.embedding_formats=[Q3_0]", "Q3_0"),
    "target from nowhere": ("optimizer._target_=os.system", "os.system"),
    "budget out of reach": ("gates.budgets_mb=[0.001]", "gates.budgets_mb: 0.001 MB"),
    "budget beyond the largest": ("gates.budgets_mb=[50]", "gates.budgets_mb: 50.0 MB"),
    "missing text": ("data.corpus.paths=[nowhere]", "nowhere does not exist"),
    "empty text": ("data.corpus.paths=[empty]", "the corpus is empty"),
    "too little text": ("data.corpus.paths=[short]", "the corpus is too small"),
    "splits shorter than a sequence": ("data.corpus.paths=[brief]", "one sequence of 32 needs 33"),
    "missing tokenizer": ("data.tokenizer_file=nowhere", "data.tokenizer_file: nowhere does not exist"),
    "folder without a tokenizer": ("data.tokenizer_file=empty", "neither tokenizer.json nor tokenizer.model"),
    "text for a tokenizer": ("data.tokenizer_file=empty/0.txt", "is no tokenizer.json"),
    "impossible split": ("data.valid_fraction=2", "data.valid_fraction"),
    "number for a list": ("model.d_model=64", "model.d_model must be a list of int, got 64"),
    "words for a list of numbers": ("model.d_model=[a,b]", "model.d_model must be a list of int"),
    "fractions for widths": ("model.blocks.mlp.width=[32.0]", "model.blocks.mlp.width must be a list of int"),
    "word for a list": ("schedule.vary=width", "schedule.vary must be a list"),
    "word for a mapping": ("model.scales=mse", "model.scales must be a mapping or null"),
    "number for a block": ("model.blocks.mlp=3", "model"),
    "number for budgets": ("gates.budgets_mb=0.05", "gates.budgets_mb must be a list"),
    "number for a file": ("gates.hardware=5", "gates.hardware must be the path"),
    "number for a checkpoint": ("model.init=5", "model.init must be a path"),
    "no group": ("optimizer=null", "a group is chosen by the name of its file"),
    "batches put together": ("+trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches cannot be set"),
    "a single step": ("+trainer.fast_dev_run=true", "trainer.fast_dev_run cannot be set"),
    "impossible positions": ("model.rope_theta=0", "rope_theta must be above 0"),
    "rising learning rate": ("schedule.final_lr=2", "schedule.final_lr"),
    "file for a folder": ("data.cache_dir=empty/0.txt", "empty/0.txt"),
    "impossible name": ("name=a/b", "name"),
    "runs in a file": ("runs_dir=empty/0.txt", "empty/0.txt"),
}


@pytest.mark.parametrize(("override", "phrase"), TRAIN_MISTAKES.values(), ids=TRAIN_MISTAKES)
def test_training_refuses(place, tmp_path, override, phrase):
    for folder, texts in (("empty", [" \n"]), ("short", ["one short text\n"]), ("brief", BRIEF)):
        (place.folder / folder).mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (place.folder / folder / f"{number}.txt").write_text(text)
    before = sorted(place.runs.rglob("*"))
    ended = place.train(f"name={tmp_path.name}", override)
    assert phrase in ended.error
    assert len(ended.err.splitlines()) == 1 and not ended.out, ended.err
    assert sorted(place.runs.rglob("*")) == before


SEARCH_MISTAKES = {
    "no run": ("run=???", "run"),
    "missing run": ("run=runs/nowhere", "runs/nowhere does not exist"),
    "unknown key": ("evaluation=3", "evaluation"),
    "unknown strategy": ("evolution=luck", "luck"),
    "unknown budget": ("+budget.speed=3", "budget.speed: no such score"),
    "unknown weight": ("+evolution.fitness.speed=3", "evolution.fitness.speed: no such score"),
    "unknown objective": ("objective=[loss,speed]", "speed"),
    "nothing to minimize": ("~objective", "objective"),
    "no workers": ("workers=0", "workers"),
    "no settings of Ray": ("ray=3", "ray must have address"),
    "hurdles that are none": ("hurdles.levels=3", "hurdles.levels must be a list"),
    "hurdle beyond all sequences": ("hurdles=default", "below eval_sequences=8"),
    "weights that are none": ("evolution.fitness=3", "evolution.fitness"),
    "weight of no size": ("evolution.fitness.loss=nan", "evolution.fitness.loss must be a number"),
    "too few probes": ("n_probes=2", "n_probes must be 5 or more"),
    "memory below nothing": ("reuse_mb=-1", "reuse_mb must be 0"),
    "word for workers": ("workers=many", "workers"),
    "word for a budget": ("budget.size_mb=abc", "budget.size_mb"),
    "budget below nothing": ("budget.loss=-1", "budget.loss must be 0 or more"),
    "budget out of reach": ("budget.size_mb=0.001", "the smallest reachable is 0.0"),
    "nothing to do": ("evaluations=0", "evaluations must be 1 or more"),
    "no threads": ("n_threads=0", "n_threads"),
    "negative count": ("n_measured=-1", "n_measured"),
    "sizes of finalists out of reach": ("finalist_sizes_mb=[0.002,0.001]", "finalist_sizes_mb=0.002: no subnet"),
    "word for a size": ("finalist_sizes_mb=[small]", "finalist_sizes_mb"),
    "unknown kind of gene": ("evolution.vary=[depth]", "evolution.vary must list some of width, switch, format"),
    "share above all": ("finalist_share=2", "finalist_share"),
    "word for a number in a group": ("evolution.population=abc", "evolution.population"),
    "single parent": ("evolution.population=1", "evolution.population"),
    "fine-tuning backwards": ("finetune.steps=-1", "finetune: steps"),
    "all of fine-tuning twice": ("finetune.full_precision=2", "finetune.full_precision must be from 0 to 1"),
    "no checkpoints": ("finetune.trainer.checkpoint_every=0", "checkpoint_every"),
    "impossible accelerator": ("finetune.trainer.accelerator=abacus", "abacus"),
    "impossible measurement": ("targets.llama_cpp.repeats=0", "targets.llama_cpp.repeats must be"),
    "impossible export": ("exports.huggingface.dtype=int3", "int3"),
    "word for a first population": ("first_population.random=abc", "first_population.random"),
    "sensitivity of a single sequence": ("sensitivity.sequences=1", "sensitivity.sequences must be 0"),
    "sensitivity that is none": ("sensitivity=3", "sensitivity must have sequences"),
    "bias backwards": ("evolution.bias=-1", "evolution.bias must be 0 or more"),
    "target from nowhere": ("evolution._target_=os.system", "os.system"),
    "impossible name": ("search=a/b", "search"),
    "word for a candidate": ("export=best", "export=best"),
}


@pytest.mark.parametrize(("override", "phrase"), SEARCH_MISTAKES.values(), ids=SEARCH_MISTAKES)
def test_search_refuses(place, tmp_path, override, phrase):
    overrides = [f"run={place.trained}", f"search={tmp_path.name}", override]
    before = sorted(place.runs.rglob("*"))
    ended = place.search(*overrides)
    assert phrase in ended.error
    assert len(ended.err.splitlines()) == 1 and not ended.out, ended.err
    assert sorted(place.runs.rglob("*")) == before


def test_structures_first_knows_no_hurdles(place, tmp_path):
    options = ("evolution=sequential", "hurdles.levels=[{sequences:4,keep:0.5}]")
    assert "hurdles must be off" in place.search(f"run={place.trained}", f"search={tmp_path.name}", *options).error


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite_header(path):
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def plant_code(path):
    edit(path, lambda space: space.update(model={"_target_": "os.mkdir", "_args_": [str(path.parent / "harm")]}))


def plant_code_deeper(path):
    code = {"_target_": "os.mkdir", "_args_": [str(path.parent / "harm")]}
    edit(path, lambda space: space["model"]["blocks"].update(mlp=code))


DAMAGE = {
    "weights cut off": ("model.safetensors", halve, "supernet is damaged"),
    "header of the weights": ("model.safetensors", overwrite_header, "supernet is damaged"),
    "no weights": ("model.safetensors", lambda path: path.unlink(), "model.safetensors is missing"),
    "space cut off": ("space.json", halve, "space.json is damaged"),
    "space no object": ("space.json", lambda path: path.write_text("[]"), "space.json is damaged"),
    "space empty": ("space.json", lambda path: path.write_text('{"version": 1}'), "supernet is damaged"),
    "space of the future": (
        "space.json",
        lambda path: edit(path, lambda space: space.update(version=99)),
        "space.json has format version 99; this program reads version 1",
    ),
    "code in the space": ("space.json", plant_code, "os.mkdir is no target of conf/"),
    "code deeper in the space": ("space.json", plant_code_deeper, "os.mkdir is no target of conf/"),
    "another class in the space": (
        "space.json",
        lambda path: edit(path, lambda space: space.update(model={"_target_": "lightning.Trainer"})),
        "lightning.Trainer",
    ),
    "space of another net": (
        "space.json",
        lambda path: edit(path, lambda space: space["model"].update(n_layers=1)),
        "its genes are not those of its model",
    ),
    "gates of nothing": ("gates.json", lambda path: path.write_text('{"version": 1}'), "gates.json is damaged"),
    "data of nothing": ("data.json", lambda path: path.write_text('{"version": 1}'), "data.json is damaged"),
    "other text than in training": (
        "data.json",
        lambda path: edit(path, lambda data: data.update(hash="0123")),
        "has changed since training",
    ),
    "another tokenizer of the same text": (
        "data.json",
        lambda path: edit(path, lambda data: data.update(tokenizer_sha256="0123")),
        "its tokenizer is not the one",
    ),
    "text gone": (
        "data.json",
        lambda path: edit(path, lambda data: data["config"]["corpus"].update(paths=["gone"])),
        "gone does not exist",
    ),
    "no tokenizer": ("tokenizer.json", lambda path: path.unlink(), "tokenizer.json is missing"),
    "training unfinished": ("summary.json", lambda path: path.unlink(), "has not finished"),
}


@pytest.mark.parametrize(("file", "damage", "phrase"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("more", [[], ["export=0"]], ids=["search", "export"])
def test_a_damaged_run_is_refused(place, tmp_path, file, damage, phrase, more):
    run = place.copy_of_trained(tmp_path.name)
    if more:  # an export that would succeed, were it not for the damage
        shutil.copytree(place.searched, run / "search" / "main", ignore=shutil.ignore_patterns("export"))
    damage(run / "supernet" / file)
    before = contents(run)
    ended = place.search(f"run={run}", *more)
    assert phrase in ended.error
    assert contents(run) == before and not (run / "supernet" / "harm").exists()
    assert more or not (run / "search" / "main").exists()


@pytest.mark.parametrize("which", ["-1", "24"])
def test_export_of_what_is_not_there(place, which):
    before = contents(place.searched)
    ended = place.search(f"run={place.searched.parents[1]}", f"export={which}")
    assert "has the candidates 0 to 23" in ended.error
    assert contents(place.searched) == before


def test_export_before_any_search(place):
    ended = place.search(f"run={place.trained}", "search=later", "export=0")
    assert "a search makes it: python search.py run=" in ended.error
    assert not (place.trained / "search").exists()


def test_a_run_has_one_process_at_a_time(place, tmp_path):
    arguments = [*TRAINING, f"name={tmp_path.name}", "schedule.joint_steps=2000"]
    first = place.start("train.py", *arguments)
    wait_for((place.runs / tmp_path.name / "checkpoints").exists)
    for more in ([], ["fresh=true"]):
        assert "is in use by another process" in place.start("train.py", *arguments, *more).end().error
    assert first.kill_when(lambda: True)
    assert "has not finished" in place.search(f"run=runs/{tmp_path.name}").error


def test_a_search_has_one_process_at_a_time(place, tmp_path):
    run = place.copy_of_trained(tmp_path.name)
    arguments = [*SEARCH, f"run={run}", "evaluations=2000"]
    first = place.start("search.py", *arguments)
    wait_for((run / "search" / "main" / "journal.jsonl").exists)
    for more in ([], ["fresh=true"], ["export=0"]):
        assert "is in use by another process" in place.start("search.py", *arguments, *more).end().error
    assert first.kill_when(lambda: True)
