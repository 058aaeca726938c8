"""Many runs for one comparison: encoders by samplers by seeds.

A sweep is a TOML file, such as docs/comparison.toml. Its runs are made as
`trials.py` has it; given again, a sweep goes on with what is not finished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neggen_jax import plots, significance, trials
from neggen_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a TOML file asks for.

    Attributes:
      config: file whose argument is an encoder and a sampler.
      encoders: words of it.
      samplers: words of it; with the first, the others are compared.
      seeds: of the runs of each pair.
      set: "key=value", for all runs.
      metrics: of the table; see `significance.read`.
    """

    config: str
    encoders: tuple[str, ...]
    samplers: tuple[str, ...]
    seeds: tuple[int, ...]
    set: tuple[str, ...] = ()
    metrics: tuple[str, ...] = significance.METRICS


@dataclasses.dataclass(frozen=True)
class Trial(trials.Trial):
    """One run of a sweep, such as "mf-dns-0".

    Attributes:
      encoder, sampler, seed: which.
    """

    encoder: str
    sampler: str
    seed: int


def read(path: str) -> Sweep:
    """Reads a sweep's TOML file.

    Raises:
      InputError: naming the key that is missing, unknown or of another kind.
    """
    given = trials.read_toml(path, "sweep", "docs/comparison.toml")
    return trials.fill(Sweep, given, "sweep", str(path))


def make(sweep: Sweep, data: str, output: Path) -> list[Trial]:
    """All runs, seed by seed: the first seed of everything comes first.

    Args:
      sweep: what is asked for.
      data: dataset directory.
      output: under which workdirs are made.

    Raises:
      InputError: unknown words and keys.
    """
    out = []
    for seed in sweep.seeds:
        for encoder in sweep.encoders:
            for sampler in sweep.samplers:
                name = f"{encoder}-{sampler}-{seed}"
                fields = trials.describe(
                    name,
                    f"{sweep.config}:{encoder},{sampler}",
                    [*sweep.set, f"data.path={data}", f"seed={seed}"],
                    output / name,
                )
                out.append(
                    Trial(**fields, encoder=encoder, sampler=sampler, seed=seed)
                )
    return out


@dataclasses.dataclass(frozen=True)
class Finished:
    """What there is to be compared.

    Attributes:
      dataset: name of what all runs are of.
      groups: encoder -> the runs of each of its samplers, the first sampler's
        first.
      notes: of what is not finished, or not alike.
    """

    dataset: str
    groups: dict[str, list[significance.Group]]
    notes: list[str]


def gather(sweep: Sweep, made: Sequence[Trial]) -> Finished:
    """Reads what is finished.

    Raises:
      InputError: nothing is finished that could be compared.
    """
    found: dict[str, list[significance.Group]] = {}
    notes = []
    for encoder in sweep.encoders:
        groups = []
        for sampler in sweep.samplers:
            done = [
                trial.workdir
                for trial in made
                if (trial.encoder, trial.sampler) == (encoder, sampler)
                and trial.state == "finished"
            ]
            name = _name(encoder, sampler)
            if len(done) < len(sweep.seeds):
                notes.append(f"{name}: {len(done)} runs are finished")
            if done:
                groups.append(significance.read(name, done, sweep.metrics))
        if groups and groups[0].name == _name(encoder, sweep.samplers[0]):
            found[encoder] = groups
            notes += significance.caveats(groups)
    if not found:
        raise InputError(
            "Nothing is finished that could be compared.",
            where=str(made[0].workdir.parent),
            expected=f"a run of {sweep.samplers[0]!r} with some encoder",
        )
    dataset = next(iter(found.values()))[0].dataset["name"]
    return Finished(dataset, found, notes)


def _name(encoder: str, sampler: str) -> str:
    return f"{encoder}, {sampler}"


def page(sweep: Sweep, finished: Finished) -> str:
    """The comparison as Markdown.

    Each sampler is tested against the first, with the same encoder.
    """
    every = finished.groups.values()
    rows = [row for groups in every for row in significance.rows(groups)]
    settings = ", ".join(sweep.set) or "as they are"
    return "\n".join(
        [
            f"# Samplers on {finished.dataset}",
            "",
            f"`{sweep.config}`, words as in the first column, keys "
            f"{settings}; {len(sweep.seeds)} seeds, the best step chosen on "
            "valid, metrics on test: mean ± standard deviation over seeds. "
            f"Differences are to `{sweep.samplers[0]}` with the same encoder, "
            "in brackets with their 95 % interval, by paired t-tests over "
            "users and over seeds.",
            "",
            significance.markdown(rows),
            *(f"- {note}" for note in finished.notes),
        ]
    )


def draw(sweep: Sweep, finished: Finished) -> Figure:
    """The comparison as a figure, by the first metric.

    A panel for each encoder: each run is a dot, and the mean over seeds a
    line, blue where it is above that of the first sampler.
    """
    metric, found = sweep.metrics[0], finished.groups
    height = 1.4 + 0.3 * len(sweep.samplers)
    figure = plots.blank(1 + 2.8 * len(found), height)
    figure.suptitle(f"Samplers on {finished.dataset}, test {metric} by seed")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (encoder, groups) in zip(panels, found.items(), strict=True):
        plots.style(axes, encoder, "")
        axes.xaxis.set_major_formatter("{x:.3g}")
        seeds = {group.name: group.values[metric].mean(1) for group in groups}
        first = groups[0].name
        axes.axvline(seeds[first].mean(), color=plots.GREY, ls=":", lw=1)
        for place, sampler in enumerate(sweep.samplers):
            runs = seeds.get(_name(encoder, sampler))
            if runs is None:
                continue
            better = runs.mean() > seeds[first].mean()
            colour = plots.COLOURS[0 if better else 1]
            if _name(encoder, sampler) == first:
                colour = plots.GREY
            axes.plot(runs, [place] * len(runs), "o", color=colour, ms=4)
            ends = place - 0.35, place + 0.35
            axes.plot([runs.mean()] * 2, ends, color=colour, lw=2)
        axes.set_yticks(range(len(sweep.samplers)), sweep.samplers)
        axes.set_ylim(len(sweep.samplers) - 0.4, -0.6)
    return figure
