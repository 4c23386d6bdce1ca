"""From YAML to objects, with one clear line for whatever a user mistyped."""

import math
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from supernet.errors import UserError

SCALARS = (bool, int, float, str, NoneType)
CONF = Path(__file__).resolve().parents[1] / "conf"


@dataclass
class TrainConfig:
    """Top level of `conf/train.yaml`: an unknown key is refused."""

    name: str
    runs_dir: str
    seed: int
    fresh: bool
    plan: bool
    batch_size: int
    sequence_length: int
    eval_sequences: int
    data: Any
    model: Any
    schedule: Any
    teacher: Any
    gates: Any
    optimizer: Any
    trainer: Any
    logger: Any


def score_names() -> list[str]:
    """Return the names of all scores there are: one objective a file in conf/objective/."""
    return sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))


@dataclass
class SearchConfig:
    """Top level of `conf/search.yaml`: an unknown key is refused."""

    run: str
    search: str
    seed: int
    fresh: bool
    export: int | None
    evaluations: int
    batch: int
    eval_sequences: int
    judge_sequences: int
    eval_batch_size: int
    reuse_mb: float
    n_threads: int
    workers: int | str
    worker_timeout_s: float
    ray: Any
    n_probes: int
    sensitivity: Any
    n_measured: int
    n_finalists: int
    finalist_sizes_mb: list[float]
    finalist_share: float
    baselines: bool
    prompt: str
    evolution: Any
    hurdles: Any
    finetune: Any
    first_population: Any
    objectives: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, Any] = field(default_factory=dict)
    exports: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(score_names()))


def register() -> None:
    """Make the top-level schemas known to Hydra."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="search_schema", node=SearchConfig)


def one_line_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Make a script's mistakes of the user's one line on stderr and exit code 2."""

    @wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException
        from safetensors import SafetensorError

        try:
            main(*args, **kwargs)
        except UserError as error:
            _stop(str(error))
        except ValueError as error:
            if not str(error).startswith("Config group override"):  # hurdles=null: no exception of Hydra's own
                raise
            _stop(f"{error}: a group is chosen by the name of its file in conf/, as in hurdles=none")
        except (HydraException, OmegaConfBaseException) as error:
            _stop(_first_user_error(error) or str(error))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search("out of memory|DefaultCPUAllocator", str(error)):
                raise
            _stop(f"out of memory: lower batch_size (see plan=true), of a search eval_batch_size or workers ({error})")
        except (OSError, SafetensorError) as error:
            _stop(f"{error} (what was written before is kept)")
        except KeyboardInterrupt:
            _stop("interrupted; the same command goes on from the last checkpoint", code=130)

    return guarded


def run_script(main: Callable[[], None]) -> None:
    """Run a Hydra main whose configuration errors are one line too."""
    # Without this Hydra prints several lines of its own and exits.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    register()
    one_line_errors(main)()


def _stop(message: str, code: int = 2) -> None:
    line = re.sub(r"\s*\n\s*", "; ", message.strip())
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(code)


def _first_user_error(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        error = error.__cause__
    return None


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """Instantiate a `_target_` node; only targets that occur in our own `conf/` are run.

    Raises:
        UserError: another target, an unknown key, or a value its constructor refuses.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check(node)
    try:
        return instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        told = _first_user_error(error)
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        if told is None and isinstance(error.__cause__, TypeError | ValueError):
            told = f"{node['_target_']}: {error.__cause__} (see its file in conf/)"
        if told is None:
            raise
        raise UserError(told) from error


@cache
def _known_targets() -> frozenset[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(CONF.rglob("*.yaml")))
    return frozenset(re.findall(r"_target_:\s*([\w.]+)", text))


def check(node: Any) -> None:
    """Hold a configuration against `conf/` and against the constructors it names, without running any.

    Raises:
        UserError: a target that does not occur in `conf/`, an unknown key, a value of the wrong type.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf

    if isinstance(node, dict | list):
        node = OmegaConf.create(node)
    if isinstance(node, DictConfig):
        target = node.get("_target_")
        if target is not None and target not in _known_targets():
            raise UserError(f"{target} is no target of conf/; a configuration may only name what occurs there")
        if target is not None and target.startswith(("supernet.", "search.")):
            _check_settings(node, target)
        for key in node:
            check(node[key])
    elif isinstance(node, ListConfig):
        for item in node:
            check(item)


def _check_settings(node: Any, target: str) -> None:
    from hydra.utils import get_object

    made = get_object(target)
    constructors = [made] if not isinstance(made, type) else [vars(c).get("__init__") for c in made.__mro__[::-1]]
    hints = {k: v for c in constructors if c is not None for k, v in get_type_hints(c).items()}
    for key, value in node.items():
        if key.startswith("_"):
            continue
        where = node._get_full_key(key)
        if key not in hints:
            known = ", ".join(sorted(hints.keys() - {"args", "kwargs", "return"}))
            raise UserError(f"{target}: {where} is none of its settings, which are {known}")
        if not _fits(value, hints[key]):
            raise UserError(f"{where} must be {_said(hints[key])}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value may stand for `hint`; what is in a mapping is left to the constructor."""
    from omegaconf import ListConfig

    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if isinstance(value, ListConfig):
        return hint not in SCALARS and (origin is not Sequence or all(_fits(item, arguments[0]) for item in value))
    if not isinstance(value, SCALARS):
        return hint not in SCALARS and origin not in (Sequence, tuple)
    if origin in (Sequence, tuple, Mapping):
        return False
    try:
        return isinstance(value, hint) or (isinstance(value, int) and isinstance(0.0, hint))
    except TypeError:  # a generic
        return True


def _said(hint: Any) -> str:
    """Return a type as a message names it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join("null" if argument is NoneType else _said(argument) for argument in arguments)
    if origin in (Sequence, tuple):
        return f"a list of {_said(arguments[0])}"
    if origin is Literal:
        return " or ".join(map(str, arguments))
    return "a mapping" if origin is Mapping else str(getattr(hint, "__name__", hint))


def check_counts(config: Any) -> None:
    """Raise UserError for a whole number at the top level that is below 1; all but the seed are counts."""
    from omegaconf import OmegaConf

    schema: Any = OmegaConf.get_type(config)
    for entry in fields(schema):
        if entry.type is int and entry.name != "seed" and config[entry.name] < 1:
            raise UserError(f"{entry.name} must be 1 or more, got {config[entry.name]}")


def number(node: Any, key: str | int) -> float:
    """Return a number of a part of the configuration that has no constructor.

    Raises:
        UserError: it is none.
    """
    try:
        value = float(node[key])
        if math.isfinite(value):
            return value
    except (TypeError, ValueError):
        pass
    raise UserError(f"{node._get_full_key(key)} must be a number, got {node[key]!r}")


def plain(config: Any, *, but: Collection[str]) -> dict[str, Any]:
    """Return all settings as plain values, interpolations resolved, `but` some keys."""
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items() if key not in but}


def job_name(config: Any, key: str) -> str:
    """Return the name under `key`, of a directory; a sweep's jobs append what the sweep varies.

    Raises:
        UserError: it cannot name a directory.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    name = str(config[key])
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        parse = OverridesParser.create().parse_overrides
        typed = parse([word for word in sys.argv[1:] if "=" in word and not word.startswith("-")])
        varied = {o.key_or_group for o in typed if o.is_sweep_override()} - {key, "experiment", "run"}
        own = [str(o.input_line) for o in parse(list(HydraConfig.get().overrides.task)) if o.key_or_group in varied]
        name = "_".join([name, *(line.lstrip("+").replace("/", "-") for line in own)])
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"{key}: {name!r} cannot name a directory")
    return name
