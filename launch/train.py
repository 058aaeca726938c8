"""Trains a recommender, or resumes one: the same command does both.

    python launch/train.py --config=configs/baseline.py:lightgcn \
        --config.data.path=DIR --workdir=DIR

SIGTERM or SIGINT has it save the step that it has come to and end, by SIGTERM
with exit status 0, by SIGINT with 130; a second SIGINT kills.

Of several processes each is given the same command, and told which one it is:
--coordinator=HOST:PORT --processes=N --process=I, or --coordinator=auto on a
machine that knows (TPU pods, Slurm). All see the same data and workdir.
"""

from absl import flags
from ml_collections import config_flags

from neggen_jax import command, hosts

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, or auto; empty: one process."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many there are.")
_PROCESS = flags.DEFINE_integer("process", 0, "Which one this is, from 0.")


def main(argv: list[str]) -> None:
    """Calls the trainer."""
    del argv
    from neggen_jax.train import train_and_evaluate

    hosts.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    config = _CONFIG.value
    results = train_and_evaluate(config, _WORKDIR.value)
    if not hosts.first():
        return
    metric = config.train.metric
    print(
        f"best epoch {results['epoch']:.0f} of {results['epochs_trained']}; "
        f"test {metric} {results['test'][metric]:.4f} (most popular items: "
        f"{results['most_popular'][metric]:.4f}); "
        f"everything is in {_WORKDIR.value}"
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
