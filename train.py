"""Train a weight-sharing supernet: `python train.py +experiment=llama_like`.

Leaves runs/NAME for `search.py`; the same command on an unfinished run goes on with it.
"""

import hydra
from omegaconf import DictConfig

from supernet.config import one_line_errors, run_script


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    """Tokens, supernet and gates, training, files for the search, a table."""
    from supernet import outcome, plan, stage  # late: --help should not wait for torch
    from supernet.claims import leads
    from supernet.original import make_teacher

    config = stage.with_shape(config)
    if config.plan:
        plan.show(config)
        return
    with stage.opened(config) as run:
        if run.finished:
            outcome.say_finished(run)
            return
        plan.check_parts(config)
        data = stage.prepare_data(config)
        supernet = stage.make_supernet(config, data)
        training = stage.make_training(config, supernet, make_teacher(config, supernet))
        metrics = stage.train(config, run, training, data)
        if leads():
            outcome.save(config, run, training, data, metrics)
            outcome.say_finished(run)


if __name__ == "__main__":
    run_script(main)
