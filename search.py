"""Search a trained supernet and ship what is found: `python search.py run=runs/llama_like budget.size_mb=1.2`.

`export=ID` ships any candidate of a search's journal instead.
"""

import hydra
from omegaconf import DictConfig

from supernet.config import one_line_errors, run_script


@hydra.main(config_path="conf", config_name="search", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    """Evolve, measure the front, fine-tune and ship the finalists, report."""
    from search import stage  # late: --help should not wait for torch

    if config.export is not None:
        stage.export_candidate(config)
        return
    with stage.opened(config) as search:
        if not search.finished:
            search.prepare_hardware()
            search.profile_sensitivity()
            candidates = stage.evolve(search)
            fronts = stage.fronts(search, candidates)
            stage.measure_fronts(search, fronts)
            finalists = stage.tune_and_ship(search, candidates, fronts)
            stage.finish(search, finalists)
        stage.say_finished(search)


if __name__ == "__main__":
    run_script(main)
