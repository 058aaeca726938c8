"""The main job on the built-in catalogue, from nothing to a comparison."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from neggen_jax import config as configs
from neggen_jax import report
from neggen_jax.data.prepare import prepare, summarise

# Name of the run -> config file, with its argument.
EXPERIMENTS = {
    "mf": "configs/baseline.py:mf",
    "lightgcn": "configs/baseline.py:lightgcn",
    "vbpr": "configs/baseline.py:vbpr",
    "freedom": "configs/baseline.py:freedom",
    "mci": "configs/baseline.py:mci",
    "gdnsm": "configs/gdnsm.py:mci",
}


def run(
    output: str | os.PathLike[str],
    experiments: dict[str, str] | None = None,
    **options: Any,
) -> str:
    """Prepares a bazaar, trains every experiment on it, compares them.

    What is there already is used or resumed.

    Args:
      output: directory for the dataset (`data`), the runs, and the
        comparison (`comparison.md`, `comparison.png`, `measures.png`).
      experiments: name -> config file; `EXPERIMENTS` by default.
      **options: of the bazaar.

    Returns:
      The comparison, as Markdown.

    Raises:
      InputError: whatever preparing and training raise.
    """
    from rich.console import Console

    from neggen_jax.train import train_and_evaluate

    directory = pathlib.Path(output)
    data = directory / "data"
    if not (data / "catalog.json").exists():
        catalog = prepare("bazaar", None, data, **options)
        summarise(catalog, data)
    experiments = EXPERIMENTS if experiments is None else experiments
    workdirs = []
    for name, spec in experiments.items():
        config = configs.load(spec)
        config.data.path = str(data)
        workdirs.append(directory / name)
        train_and_evaluate(config, workdirs[-1])
    report.plot_comparison(workdirs, directory / "comparison.png")
    report.plot_measures(workdirs, directory / "measures.png")
    text = report.comparison_markdown(workdirs)
    (directory / "comparison.md").write_text(text)
    Console().print(report.compare(workdirs))
    print(f"plots: {directory}/*.png and {directory}/*/plots/")
    return text
