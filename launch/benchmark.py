"""Times experiments on a built-in catalogue of a known size.

    python launch/benchmark.py --size=baby \
        --experiment=configs/baseline.py:mci --experiment=configs/gdnsm.py:mci

Prints examples/s, seconds per epoch and per evaluation on valid, compile
time and peak memory of the whole process; `--output=FILE` keeps them as JSON.
`--mmrec=DIR`, a clone of MMRec, times its nearest models first, in the Python
that `--mmrec_python` names, and prints how many times ours they take.
`--beside=FILE` does so with timings of any program that were kept as JSON.

    python launch/benchmark.py --size=baby --kernels=docs/kernels.json

times single kernels instead, turn by turn with NumPy and SciPy, tells which
share of what the machine can do they reach, and fails if one of them has
fallen behind the ratio that the file has; `--accept` writes what is measured.
"""

import dataclasses
import json
import os
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
    "size",
    "baby",
    "Of the catalogue: demo, baby, sports, electronics or million.",
)
_DATA = flags.DEFINE_string(
    "data", None, "Directory to make the catalogue in, and to find it again."
)
_EPOCHS = flags.DEFINE_integer("epochs", 6, "Epochs that medians are over.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file of what is timed.")
_BESIDE = flags.DEFINE_string("beside", None, "Another program's JSON file.")
_MMREC = flags.DEFINE_string("mmrec", None, "A clone of MMRec, to be timed.")
_KERNELS = flags.DEFINE_string(
    "kernels", None, "Accepted ratios of kernels to their references."
)
_ACCEPT = flags.DEFINE_bool("accept", False, "Write these ratios.")
_TURNS = flags.DEFINE_integer("turns", 11, "Times that kernels are timed.")
_PYTHON = flags.DEFINE_string("mmrec_python", "python3", "Its Python.")


def main(argv: list[str]) -> None:
    """Calls the benchmark for each experiment."""
    del argv
    # Compilation is timed too; those that train come later.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
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
        data = pathlib.Path(_DATA.value or pathlib.Path(scratch) / size)
        benchmark.write(size, data)
        if _KERNELS.value:
            _time_kernels(size, data)
            return
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
    _show(benchmark.table(rows, title, beside))


def _time_kernels(size: str, data: pathlib.Path) -> None:
    from neggen_jax import kernel_timing, kernels
    from neggen_jax.data import store
    from neggen_jax.errors import InputError

    path, accepted = _KERNELS.value, {}
    if not _ACCEPT.value:
        accepted = kernel_timing.read_accepted(path, size)
    timings = kernel_timing.measure(
        kernels.make(store.load(data)), _TURNS.value
    )
    _show(kernel_timing.table(timings, accepted, f"kernels, {size}"))
    if _OUTPUT.value:
        said = {name: dataclasses.asdict(t) for name, t in timings.items()}
        text = json.dumps({"size": size, "kernels": said}, indent=2)
        pathlib.Path(_OUTPUT.value).write_text(text + "\n")
    if _ACCEPT.value:
        kernel_timing.accept(path, size, timings)
    if fallen := kernel_timing.fallen(timings, accepted):
        raise InputError(
            "Kernels have become slower beside their references.",
            where=path,
            expected=f"at least {kernel_timing.KEEPS} of the accepted ratios",
            found="; ".join(
                f"{name}: {ratio:.1f} of {before:.1f}"
                for name, (ratio, before) in fallen.items()
            ),
            fix="look at what has changed; or, if it is to be, --accept it",
        )


def _show(table: Any) -> None:
    # A file has no width that columns would have to be cut to.
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


if __name__ == "__main__":
    command.run(main)
