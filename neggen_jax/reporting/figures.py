"""The plots of one run, as PNG files in its workdir."""

from __future__ import annotations

from etils import epath

from neggen_jax import (
    history,
    plots,
    plots_balance,
    plots_negatives,
    storage,
)
from neggen_jax.history import Workdir


def plot_run(workdir: Workdir) -> list[epath.Path]:
    """Writes the plots of one run to `plots/` in its workdir.

    `learning_curves.png`: validation recall and NDCG at 20 with the best
    step marked, and each training term. `negatives_<source>.png`, of each
    source that logs by level: how hard its negatives are, and how wrong.
    `balance.png`: what is lost without each modality, and the gradients of
    each, where anything reads modalities. `recall_by_popularity.png`: recall
    at 20 by decile of item popularity, once `results.json` has it.

    Returns:
      The files written.

    Raises:
      InputError: the log or the results are missing or cannot be read.
    """
    (name,) = history.names([workdir])
    log = history.read_metrics(workdir)
    results = {}
    if (storage.path(workdir) / "results.json").exists():
        results = history.read_results(workdir)
    figures = {"learning_curves.png": plots.learning_curves(log, name)}
    # The metric of early stopping may be another than the one drawn.
    step = results.get("step", history.best_step(log))
    for source in plots_negatives.sources(log):
        figures[f"negatives_{source}.png"] = plots_negatives.by_level(
            log, source, f'{name}, negatives "{source}"', step
        )
    balance = plots_balance.balance(log, results, name, step)
    if balance is not None:
        figures["balance.png"] = balance
    deciles = results.get("deciles", {})
    if deciles.get("recall@20"):
        dataset = history.label(results.get("dataset"))
        figures["recall_by_popularity.png"] = plots.popularity_bars(
            deciles, f"{name}, test split of {dataset}"
        )
    directory = storage.path(workdir) / "plots"
    for file, figure in figures.items():
        plots.save(figure, directory / file)
    return [directory / file for file in figures]
