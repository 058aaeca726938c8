"""Many runs for one comparison: encoders by samplers by seeds.

A sweep is a TOML file, such as docs/comparison.toml. Its runs are made as
`trials.py` has it; given again, a sweep goes on with what is not finished.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from neggen_jax import significance, trials
from neggen_jax.errors import InputError


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


def page(sweep: Sweep, made: Sequence[Trial]) -> str:
    """The comparison of what is finished, as Markdown.

    Each sampler is tested against the first, with the same encoder.

    Raises:
      InputError: nothing is finished that could be compared.
    """
    rows, notes = [], []
    for encoder in sweep.encoders:
        groups = []
        for sampler in sweep.samplers:
            done = [
                trial.workdir
                for trial in made
                if (trial.encoder, trial.sampler) == (encoder, sampler)
                and trial.state == "finished"
            ]
            name = f"{encoder}, {sampler}"
            if len(done) < len(sweep.seeds):
                notes.append(f"{name}: {len(done)} runs are finished")
            if done:
                groups.append(significance.read(name, done, sweep.metrics))
        first = f"{encoder}, {sweep.samplers[0]}"
        if not groups or groups[0].name != first:
            continue
        rows += significance.rows(groups)
        notes += significance.caveats(groups)
    if not rows:
        raise InputError(
            "Nothing is finished that could be compared.",
            where=str(made[0].workdir.parent),
            expected=f"a run of {sweep.samplers[0]!r} with some encoder",
        )
    dataset = json.loads(
        next(t for t in made if t.state == "finished")
        .workdir.joinpath("results.json")
        .read_text()
    )["dataset"]
    settings = ", ".join(sweep.set) or "as they are"
    return "\n".join(
        [
            f"# Samplers on {dataset['name']}",
            "",
            f"`{sweep.config}`, words as in the first column, keys "
            f"{settings}; {len(sweep.seeds)} seeds, the best step chosen on "
            "valid, metrics on test: mean ± standard deviation over seeds. "
            f"Differences are to `{sweep.samplers[0]}` with the same encoder, "
            "in brackets with their 95 % interval, by paired t-tests over "
            "users and over seeds.",
            "",
            significance.markdown(rows),
            *(f"- {note}" for note in notes),
        ]
    )
