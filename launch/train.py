"""Trains a recommender, or resumes one: the same command does both.

    python launch/train.py --config=configs/baseline.py:lightgcn \
        --config.data.path=DIR --workdir=DIR
"""

from absl import flags
from ml_collections import config_flags

from neggen_jax import command

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")


def main(argv: list[str]) -> None:
    """Calls the trainer."""
    del argv
    from neggen_jax.train import train_and_evaluate

    config = _CONFIG.value
    results = train_and_evaluate(config, _WORKDIR.value)
    metric = config.train.metric
    print(
        f"best epoch {results['epoch']:.0f} of {results['epochs_trained']}; "
        f"test {metric} {results['test'][metric]:.4f}; "
        f"everything is in {_WORKDIR.value}"
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
