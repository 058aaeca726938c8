"""Many runs for one comparison: encoders by samplers by seeds.

A sweep is a TOML file, such as docs/comparison.toml. Each run is one of
`launch/train.py` in a process and a workdir of its own, so that the crash of
one loses nothing; given again, a sweep goes on with what is not finished.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from neggen_jax import config as configs
from neggen_jax import significance
from neggen_jax.config import RESUMABLE, flatten
from neggen_jax.errors import InputError, nearest

# How long a run is, is a part of what is compared.
_FREE = RESUMABLE - {"train.epochs", "train.patience"}


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
class Trial:
    """One run of a sweep.

    Attributes:
      encoder, sampler, seed: which.
      flags: of `launch/train.py`.
      config: as these flags give it.
      workdir: where it lives.
    """

    encoder: str
    sampler: str
    seed: int
    flags: tuple[str, ...]
    config: ConfigDict
    workdir: Path

    @property
    def name(self) -> str:
        """Such as "mf-dns-0"."""
        return f"{self.encoder}-{self.sampler}-{self.seed}"

    @property
    def state(self) -> str:
        """What there is of it: "finished", "begun" or "new"."""
        path = self.workdir / "results.json"
        if path.exists():
            before = flatten(json.loads(path.read_text())["config"])
            now = flatten(json.loads(json.dumps(self.config.to_dict())))
            # A shorter run goes on; another one is for the trainer to refuse.
            same = all(
                before.get(key) == now.get(key)
                for key in (before.keys() | now.keys()) - _FREE
            )
            return "finished" if same else "begun"
        return "begun" if self.workdir.exists() else "new"


def read(path: str) -> Sweep:
    """Reads a sweep's TOML file.

    Raises:
      InputError: naming the key that is missing, unknown or of another kind.
    """
    try:
        given = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            "There is no sweep to read.",
            where=f"--sweep={path}",
            expected="a TOML file, as docs/comparison.toml",
            found=f"{type(error).__name__}: {error}",
        ) from error
    fields = {field.name: field for field in dataclasses.fields(Sweep)}
    for key in given:
        if key not in fields:
            raise InputError(
                f"A sweep has no {key!r}.",
                where=path,
                fix=nearest(key, fields),
            )
    for key, field in fields.items():
        if field.default is dataclasses.MISSING and key not in given:
            raise InputError(f"A sweep needs {key!r}.", where=path)
    for key, value in given.items():
        kind = int if key == "seeds" else str
        values = [value] if key == "config" else value
        fine = isinstance(values, list) and all(type(x) is kind for x in values)
        if not fine or (not values and key != "set"):
            many = "" if key == "config" else "a list, not empty, of "
            raise InputError(
                f"Bad value of {key!r} in a sweep.",
                where=path,
                expected=f"{many}{kind.__name__}",
                found=repr(value),
            )
    lists: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in given.items()
    }
    return Sweep(**lists)


def trials(sweep: Sweep, data: str, output: Path) -> list[Trial]:
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
                spec = f"{sweep.config}:{encoder},{sampler}"
                config = configs.load(spec)
                values = [*sweep.set, f"data.path={data}", f"seed={seed}"]
                configs.override(config, values)
                workdir = output / f"{encoder}-{sampler}-{seed}"
                flags = (
                    f"--config={spec}",
                    *(f"--config.{value}" for value in values),
                    f"--workdir={workdir}",
                )
                out.append(
                    Trial(encoder, sampler, seed, flags, config, workdir)
                )
    return out


def command(trial: Trial, trainer: Path) -> list[str]:
    """What is run for it."""
    return [sys.executable, str(trainer), *trial.flags]


def plan(made: Sequence[Trial], trainer: Path) -> str:
    """What would run, a line each, and what would not."""
    lines = []
    for trial in made:
        state = trial.state
        words = [] if state == "finished" else command(trial, trainer)
        lines.append(f"{state:8}  {trial.name}  {shlex.join(words)}".rstrip())
    left = sum(not line.startswith("finished") for line in lines)
    return "\n".join([*lines, f"{left} of {len(lines)} runs are to be made"])


def run(
    made: Sequence[Trial],
    trainer: Path,
    output: Path,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Makes the runs that are not finished, one after another.

    What each says goes to `logs/` under the output. Told to stop, the run
    that is under way stops in order, and the sweep with it.

    Returns:
      What went wrong, a line each.
    """
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    wrong = []
    for number, trial in enumerate(made, 1):
        if trial.state == "finished":
            continue
        say(f"[{number}/{len(made)}] {trial.name}")
        log = logs / f"{trial.name}.log"
        status, told = _call(command(trial, trainer), log)
        if trial.state != "finished":
            wrong.append(f"{trial.name}: status {status}; see {log}")
            say(wrong[-1])
        if told:
            wrong.append("told to stop; the same command goes on from there")
            break
    return wrong


def _call(words: list[str], log: Path) -> tuple[int, bool]:
    """Runs a command; its status, and whether it was told to stop.

    Signals reach it through here alone, once each: in a session of its own,
    it hears nothing from the terminal.
    """
    told: list[int] = []
    with (
        log.open("ab") as out,
        subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as child,
    ):

        def tell(number: int, _: Any) -> None:
            told.append(number)
            child.send_signal(number)

        stop = signal.SIGINT, signal.SIGTERM
        before = {number: signal.signal(number, tell) for number in stop}
        try:
            return child.wait(), bool(told)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
