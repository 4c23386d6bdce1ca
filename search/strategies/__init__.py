"""Strategies, one a file. Their settings are in `conf/evolution/NAME.yaml`."""

from collections.abc import Callable

from search.evolution import Evolution


def shipped(name: str) -> Callable[..., Evolution]:
    """Return a strategy with the settings of `conf/evolution/NAME.yaml`, for use as a library.

    What is left to give are the arguments of `Evolution`; keywords replace settings.

    Raises:
        UserError: there is no such strategy.
    """
    from omegaconf import OmegaConf

    from supernet.config import CONF, build
    from supernet.errors import UserError

    path = CONF / "evolution" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise UserError(f"evolution={name}: no such strategy; there are {known}")
    settings = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(settings, dict)
    return build({key: value for key, value in settings.items() if key != "defaults"})
