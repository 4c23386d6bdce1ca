"""Every mistake of the user is one line that names it, and harms nothing."""


import pytest

from tests.scripts import contents, edit, workplace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.getbasetemp())


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
    "impossible precision": ("trainer.precision=3", "trainer"),
    "impossible accelerator": ("trainer.accelerator=abacus", "abacus"),
    "width of no group": ("model.blocks.mlp.width=[48]", "a width of 48 does not fit Q4_0"),
    "falling widths": ("model.d_model=[64,32]", "model.d_model"),
    "unknown format": ("model.embedding_formats=[Q3_0]", "Q3_0"),
    "target from nowhere": ("optimizer._target_=os.system", "os.system"),
    "budget out of reach": ("gates.budgets_mb=[0.001]", "gates.budgets_mb: 0.001 MB"),
    "budget beyond the largest": ("gates.budgets_mb=[50]", "gates.budgets_mb: 50.0 MB"),
    "missing text": ("data.corpus.paths=[nowhere]", "nowhere does not exist"),
    "empty text": ("data.corpus.paths=[empty]", "the corpus is empty"),
    "too little text": ("data.corpus.paths=[short]", "sequence"),
    "impossible split": ("data.valid_fraction=2", "data.valid_fraction"),
    "impossible name": ("name=a/b", "name"),
    "runs in a file": ("runs_dir=empty/nothing.txt", "empty/nothing.txt"),
}


@pytest.mark.parametrize(("override", "phrase"), TRAIN_MISTAKES.values(), ids=TRAIN_MISTAKES)
def test_training_refuses(place, override, phrase):
    for folder, text in (("empty", " \n"), ("short", "one short text\n")):
        (place.folder / folder).mkdir(exist_ok=True)
        (place.folder / folder / "nothing.txt").write_text(text)
    before = sorted(place.runs.rglob("*"))
    ended = place.train("name=mistaken", override)
    assert phrase in ended.error
    assert len(ended.err.splitlines()) == 1 and not ended.out, ended.err
    assert sorted(place.runs.rglob("*")) == before


SEARCH_MISTAKES = {
    "no run": ("run=???", "run"),
    "missing run": ("run=runs/nowhere", "runs/nowhere does not exist"),
    "unknown key": ("evaluation=3", "evaluation"),
    "unknown strategy": ("evolution=luck", "luck"),
    "unknown budget": ("+budget.decode_ms=3", "budget.decode_ms: no such score"),
    "word for a budget": ("budget.size_mb=abc", "budget.size_mb"),
    "budget of nothing": ("+budget.loss=0", "budget.loss"),
    "budget out of reach": ("budget.size_mb=0.001", "the smallest reachable is 0.0"),
    "nothing to do": ("evaluations=0", "evaluations must be 1 or more"),
    "no threads": ("n_threads=0", "n_threads"),
    "negative count": ("n_measured=-1", "n_measured"),
    "share above all": ("finalist_share=2", "finalist_share"),
    "word for a number in a group": ("evolution.population=abc", "evolution.population"),
    "single parent": ("evolution.population=1", "evolution.population"),
    "fine-tuning backwards": ("finetune.steps=-1", "finetune: steps"),
    "no checkpoints": ("finetune.trainer.checkpoint_every=0", "checkpoint_every"),
    "impossible accelerator": ("finetune.trainer.accelerator=abacus", "abacus"),
    "impossible measurement": ("target.repeats=0", "target.repeats"),
    "impossible export": ("exports.huggingface.dtype=int3", "int3"),
    "word for a first population": ("first_population.random=abc", "first_population.random"),
    "target from nowhere": ("evolution._target_=os.system", "os.system"),
    "impossible name": ("search=a/b", "search"),
    "export of a word": ("export=best", "export"),
}


@pytest.mark.parametrize(("override", "phrase"), SEARCH_MISTAKES.values(), ids=SEARCH_MISTAKES)
def test_search_refuses(place, override, phrase):
    overrides = [f"run={place.trained}", "search=mistaken", override]
    before = sorted(place.runs.rglob("*"))
    ended = place.search(*overrides)
    assert phrase in ended.error
    assert len(ended.err.splitlines()) == 1 and not ended.out, ended.err
    assert sorted(place.runs.rglob("*")) == before
