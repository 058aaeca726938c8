"""Times experiments on a built-in catalogue of a known size.

    python launch/benchmark.py --size=baby \
        --experiment=configs/baseline.py:mci --experiment=configs/gdnsm.py:mci

Prints examples/s, seconds per epoch and per evaluation on valid, compile
time and peak memory of the whole process; `--output=FILE` keeps them as JSON.
"""

import json
import pathlib

from absl import flags
from rich.console import Console

from neggen_jax import command

_EXPERIMENTS = flags.DEFINE_multi_string(
    "experiment",
    ["configs/baseline.py:lightgcn", "configs/baseline.py:mci"],
    "Config file, with its argument after a colon and what differs after "
    "plus signs: FILE.py:ARGUMENT+key=value. May be given several times.",
)
_SIZE = flags.DEFINE_string("size", "baby", "demo or baby.")
_EPOCHS = flags.DEFINE_integer("epochs", 6, "Epochs that medians are over.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def main(argv: list[str]) -> None:
    """Calls the benchmark for each experiment."""
    del argv
    from neggen_jax import benchmark

    rows = {}
    for spec in _EXPERIMENTS.value:
        rows[spec] = benchmark.measure(spec, _SIZE.value, _EPOCHS.value)
    title = f"{_SIZE.value}, medians over {_EPOCHS.value} epochs"
    Console().print(benchmark.table(rows, title))
    if _OUTPUT.value:
        text = json.dumps({"size": _SIZE.value, "rows": rows}, indent=2)
        pathlib.Path(_OUTPUT.value).write_text(text + "\n")


if __name__ == "__main__":
    command.run(main)
