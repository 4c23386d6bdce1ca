"""From YAML to objects, with one clear line for whatever a user mistyped."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

from supernet.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"


@dataclass
class TrainConfig:
    """Top level of `conf/train.yaml`: an unknown key is refused."""

    name: str
    runs_dir: str
    seed: int
    fresh: bool
    batch_size: int
    sequence_length: int
    eval_sequences: int
    data: Any
    model: Any
    schedule: Any
    gates: Any
    optimizer: Any
    trainer: Any
    logger: Any


@dataclass
class SearchConfig:
    """Top level of `conf/search.yaml`: an unknown key is refused."""

    run: str
    search: str
    seed: int
    fresh: bool
    export: int | None
    budget: Any
    evaluations: int
    batch: int
    eval_sequences: int
    judge_sequences: int
    eval_batch_size: int
    n_threads: int
    n_measured: int
    n_finalists: int
    finalist_share: float
    prompt: str
    evolution: Any
    objectives: Any
    target: Any
    exports: Any
    finetune: Any
    first_population: Any


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

        try:
            main(*args, **kwargs)
        except UserError as error:
            _stop(str(error))
        except (HydraException, OmegaConfBaseException) as error:
            _stop(_first_user_error(error) or str(error))
        except OSError as error:
            _stop(f"{error.strerror or error}: {error.filename or ''} (what was written before is kept)")
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

    _check_targets(node)
    try:
        return instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        told = _first_user_error(error)
        if told is None and isinstance(error.__cause__, TypeError | ValueError):
            told = f"{node['_target_']}: {error.__cause__} (see its file in conf/)"
        if told is None:
            raise
        raise UserError(told) from error


@cache
def _known_targets() -> frozenset[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(CONF.rglob("*.yaml")))
    return frozenset(re.findall(r"_target_:\s*([\w.]+)", text))


def _check_targets(node: Any) -> None:
    from omegaconf import DictConfig, ListConfig

    if isinstance(node, DictConfig | dict):
        target = node.get("_target_")
        if target is not None and target not in _known_targets():
            raise UserError(
                f"{target} is no target of conf/; a configuration may only name what occurs there"
            )
        for key in node:
            _check_targets(node[key])
    elif isinstance(node, ListConfig | list):
        for item in node:
            _check_targets(item)
