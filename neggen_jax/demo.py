"""The main job on the built-in catalogue, from nothing to a comparison."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from neggen_jax import config as configs
from neggen_jax.data.prepare import prepare
from neggen_jax.data.summary import summarise
from neggen_jax.reporting import comparison


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One row of the comparison.

    Attributes:
      config: file, with its argument.
      start_from: name of an earlier experiment, whose encoder it begins with.
    """

    config: str
    start_from: str = ""


EXPERIMENTS = {
    "lightgcn": Experiment("configs/baseline.py:lightgcn"),
    "lightgcn_dns": Experiment("configs/baseline.py:lightgcn,dns"),
    "neggen": Experiment("configs/neggen.py:lightgcn", "lightgcn"),
    "mci": Experiment("configs/baseline.py:mci"),
    "gdnsm": Experiment("configs/gdnsm.py:mci"),
    "both": Experiment("configs/neggen.py:mci,gdnsm", "mci"),
}
# What a bazaar's pictures show; the text tells the other attributes.
_SHOWN = ("colour", "pattern", "cut", "backdrop")


def run(
    output: str | os.PathLike[str],
    experiments: dict[str, Experiment] | None = None,
    **options: Any,
) -> str:
    """Prepares a bazaar, rewrites its items, trains and compares.

    What is there already is used or resumed.

    Args:
      output: directory for the dataset (`data`), the runs, a page of
        counterfactuals (`counterfactuals.html`), and the comparison
        (`comparison.md`, `comparison.png`, `measures.png`).
      experiments: name -> what to train; `EXPERIMENTS` by default.
      **options: of the bazaar.

    Returns:
      The comparison, as Markdown.

    Raises:
      InputError: whatever preparing, generating and training raise.
    """
    from rich.console import Console

    from neggen_jax.generation.inspection.inspect import inspect
    from neggen_jax.generation.sets.generate import generate
    from neggen_jax.train import train_and_evaluate

    directory = pathlib.Path(output)
    data = directory / "data"
    if not (data / "catalog.json").exists():
        catalog = prepare("bazaar", None, data, **options)
        summarise(catalog, data)
    generate(data, backend="attributes", image_attributes=list(_SHOWN))
    inspect(data, "attributes", output=directory / "counterfactuals.html")
    experiments = EXPERIMENTS if experiments is None else experiments
    workdirs = []
    for number, (name, experiment) in enumerate(experiments.items(), 1):
        print(f"[{number}/{len(experiments)}] {name}", flush=True)
        config = configs.load(experiment.config)
        config.data.path = str(data)
        if experiment.start_from:
            config.train.start_from = str(directory / experiment.start_from)
        workdirs.append(directory / name)
        train_and_evaluate(config, workdirs[-1])
    comparison.plot_comparison(workdirs, directory / "comparison.png")
    comparison.plot_measures(workdirs, directory / "measures.png")
    text = comparison.comparison_markdown(workdirs)
    (directory / "comparison.md").write_text(text)
    console = Console()
    console.print(comparison.compare(workdirs, console.width))
    print(f"the whole table: {directory}/comparison.md")
    print(f"plots: {directory}/*.png and {directory}/*/plots/")
    print(f"what was rewritten: {directory}/counterfactuals.html")
    return text
