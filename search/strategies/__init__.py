"""Strategies, one a file. Their settings are in `conf/evolution/NAME.yaml`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.evolution import Evolution


def shipped(name: str) -> Callable[..., Evolution]:
    """Return a strategy with the settings of `conf/evolution/NAME.yaml`, for use as a library.

    What is left to give are the arguments of `Evolution`; keywords replace settings.

    Raises:
        UserError: there is no such strategy.
    """
    from supernet.config import CONF, build
    from supernet.errors import UserError

    path = CONF / "evolution" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise UserError(f"evolution={name}: no such strategy; there are {known}")
    settings = _settings(path)
    del settings["defaults"]
    return build(settings)


def _settings(path: Path) -> dict[str, Any]:
    """Return the settings of a file, those of a strategy among its defaults included."""
    from omegaconf import OmegaConf

    own: Any = OmegaConf.to_container(OmegaConf.load(path))
    based = [name for name in own["defaults"] if isinstance(name, str) and name != "_self_"]
    return {key: value for name in based for key, value in _settings(path.with_stem(name)).items()} | own
