"""Times experiments on a built-in catalogue of a known size.

    python launch/benchmark.py --size=baby \
        --experiment=configs/baseline.py:mci --experiment=configs/gdnsm.py:mci

Prints examples/s, seconds per epoch and per evaluation on valid, compile
time and peak memory of the whole process; `--output=FILE` keeps them as JSON.
`--mmrec=DIR`, a clone of MMRec, times its nearest models first, in the Python
that `--mmrec_python` names, and prints how many times ours they take.
`--beside=FILE` does so with timings of any program that were kept as JSON.
"""

import json
import pathlib
import tempfile
from typing import Any

from absl import flags
from rich.console import Console

from neggen_jax import command

_EXPERIMENTS = flags.DEFINE_multi_string(
    "experiment",
    ["configs/baseline.py:lightgcn", "configs/baseline.py:mci"],
    "Config file, with its argument after a colon and what differs after "
    "plus signs: FILE.py:ARGUMENT+key=value. May be given several times.",
)
_SIZE = flags.DEFINE_string(
    "size", "baby", "Of the catalogue: demo, baby, sports or electronics."
)
_EPOCHS = flags.DEFINE_integer("epochs", 6, "Epochs that medians are over.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_BESIDE = flags.DEFINE_string("beside", None, "Another program's JSON file.")
_MMREC = flags.DEFINE_string("mmrec", None, "A clone of MMRec, to be timed.")
_PYTHON = flags.DEFINE_string("mmrec_python", "python3", "Its Python.")


def main(argv: list[str]) -> None:
    """Calls the benchmark for each experiment."""
    del argv
    from neggen_jax import benchmark

    size, epochs = _SIZE.value, _EPOCHS.value
    beside: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}

    def keep() -> None:
        if _OUTPUT.value:
            said = {"size": size, "rows": rows, "beside": beside}
            text = json.dumps(said, indent=2)
            pathlib.Path(_OUTPUT.value).write_text(text + "\n")

    if _BESIDE.value:
        beside = benchmark.read_beside(_BESIDE.value, size)
    with tempfile.TemporaryDirectory() as scratch:
        data = pathlib.Path(scratch) / size
        benchmark.write(size, data)
        if _MMREC.value:
            from neggen_jax import mmrec
            from neggen_jax.data import store

            catalog = store.load(data)
            toolbox = pathlib.Path(_MMREC.value)
            for spec in _EXPERIMENTS.value:
                print(f"MMRec: {spec}", flush=True)
                beside[spec] = mmrec.measure(
                    spec, catalog, epochs, toolbox, _PYTHON.value
                )
                keep()
        for spec in _EXPERIMENTS.value:
            rows[spec] = benchmark.measure(spec, data, epochs)
            keep()
    title = f"{size}, medians over {epochs} epochs"
    Console().print(benchmark.table(rows, title, beside))


if __name__ == "__main__":
    command.run(main)
