"""Imports go down only, and files stay short."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("supernet", "search")
    for path in sorted((ROOT / package).rglob("*.py"))
}
SCRIPTS = {"train", "search"}
FORMATS = {name for name in FILES if name.startswith("supernet.formats")}
FOUNDATIONS = {"supernet.errors", "supernet.randomness", "supernet.files", "supernet.genes"} | FORMATS
EVOLUTION = {"search.candidate", "search.fitness", "search.operators", "search.subspace"}

PARTS = {"supernet.inventory", "supernet.plain", "supernet.rope"}

PRETRAINED = {n for n in FILES if n.startswith("supernet.pretrained.") and not n.endswith((".load", ".decoder"))}

# module -> the only modules of ours that it may import, directly or not
LAYERS = {
    "supernet.errors": set(),
    "supernet.randomness": set(),
    "supernet.files": {"supernet.errors"},
    "supernet.genes": {"supernet.errors"},
    "supernet.formats": {"supernet.errors"} | FORMATS,
    "supernet.inventory": FOUNDATIONS,
    "supernet.plain": FOUNDATIONS,
    "supernet.rope": {"supernet.errors"},
    "supernet.elastic": FOUNDATIONS | PARTS,
    "supernet.elimination": set(),
    "supernet.gates": FOUNDATIONS,
    "supernet.sandwich": FOUNDATIONS,
    "supernet.losses": FOUNDATIONS,
    "supernet.model": FOUNDATIONS | PARTS | {"supernet.elastic", "supernet.gates"},
    "supernet.subnet": FOUNDATIONS | PARTS | {"supernet.elastic", "supernet.gates", "supernet.model"},
    **{name: FOUNDATIONS | PRETRAINED | {"supernet.rope"} for name in PRETRAINED},
    "search.candidate": FOUNDATIONS,
    "search.fitness": FOUNDATIONS,
    "search.subspace": FOUNDATIONS,
    "search.operators": FOUNDATIONS | {"search.candidate"},
    "search.journal": FOUNDATIONS | {"search.candidate"},
    "search.evolution": FOUNDATIONS | EVOLUTION,
    "search.strategies": FOUNDATIONS | EVOLUTION | {"search.evolution", "supernet.config"},
}
NO_TORCH = ["supernet.genes", "search.candidate", "search.operators", "search.evolution", "search.journal"]
NO_TORCH += [name for name in FILES if name.startswith("search.strategies")]


def is_late(node):
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


@cache
def imports(module, at_import=False):
    """Return the modules that a file names, ours as deep as they go.

    Args:
        module: dotted name.
        at_import: only what is imported when the module is, not later and not for type checking.
    """
    found = set()

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            found.update(submodules or {node.module})
        elif at_import and is_late(node):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(FILES[module].read_text(encoding="utf-8")))
    return frozenset(found)


def ours(module, at_import=False):
    return {name for name in imports(module, at_import) if name in FILES}


def reached(module, at_import=False):
    """Return every module of ours that `module` imports, directly or not."""
    seen, waiting = set(), [module]
    while waiting:
        for name in ours(waiting.pop(), at_import) - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def below(package):
    return [name for name in FILES if name.startswith(package + ".")]


def test_imports_are_found():
    assert "supernet.errors" in imports("supernet.genes")
    assert {"supernet.model", "supernet.formats"} <= reached("search.evaluation")
    assert len(FILES) > 30


def test_every_name_of_ours_exists():
    for module in FILES:
        wrong = {n for n in imports(module) if n.split(".")[0] in ("supernet", "search")} - set(FILES)
        assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("module", sorted(LAYERS))
def test_imports_go_down(module):
    assert reached(module) <= LAYERS[module]


def test_imports_have_no_cycle():
    for module in FILES:
        assert module not in reached(module), f"{module} imports itself by a detour"


def test_what_is_trained_does_not_know_the_search():
    for module in ["supernet", *below("supernet")]:
        assert not {name for name in imports(module) if name.split(".")[0] == "search"}, module


def test_blocks_are_injected():
    """Neither the model nor anything it needs names a block; blocks know no model."""
    for module in ("supernet.model", "supernet.subnet", "supernet.elastic", "supernet.training", "supernet.run"):
        assert not {name for name in reached(module) if name.startswith("supernet.blocks")}, module
    for module in below("supernet.blocks"):
        assert reached(module) <= FOUNDATIONS | PARTS | {"supernet.elastic", "supernet.elimination"}, module


def test_targets_and_objectives_know_no_stage():
    for module in below("search.targets"):
        above = {n for n in reached(module) if n.startswith("search.") and not n.startswith("search.targets")}
        assert not above, module
    for module in below("search.objectives"):
        assert not reached(module) & {"search.stage", "search.report", "search.evolution"}, module


def test_strategies_know_no_net():
    for module in ["search.evolution", *below("search.strategies")]:
        others = {n for n in reached(module) if not n.startswith("search.strategies")}
        assert others <= FOUNDATIONS | EVOLUTION | {"search.evolution"}, module


def test_nobody_imports_a_script():
    for module in FILES:
        assert "train" not in {name.split(".")[0] for name in imports(module)}, module
    for path in ROOT.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        assert not named & SCRIPTS - {"search"}, path


@pytest.mark.parametrize("module", NO_TORCH)
def test_no_torch_where_genomes_are_all_there_is(module):
    assert "torch" not in {name.split(".")[0] for name in imports(module)}
    for name in reached(module, at_import=True):
        assert "torch" not in {n.split(".")[0] for n in imports(name, at_import=True)}, name


@pytest.mark.parametrize("module", FILES)
def test_files_are_short(module):
    n_lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert n_lines <= 300, f"{FILES[module]} has {n_lines} lines"


def test_tests_are_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))
