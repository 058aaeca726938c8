"""Runs of many configs: each in a process and a workdir of its own.

What `sweep.py` and `search/` share. A trial is one run of `launch/train.py`,
so that the crash of one loses nothing, and what was begun goes on. Both are
told what to do by a TOML file, which is read here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from ml_collections import ConfigDict

from neggen_jax import config as configs
from neggen_jax import locks
from neggen_jax.config import RESUMABLE, flatten, written
from neggen_jax.errors import InputError, nearest

Say = Callable[[str], None]
Asked = TypeVar("Asked")

# How long a run is, is a part of what is compared.
FREE = RESUMABLE - {"train.epochs", "train.patience"}

# Seconds between two looks at a run that is under way.
_INTERVAL = 0.5


# -- what is asked for --------------------------------------------------------


def read_toml(path: str, flag: str, example: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
      path: of the file.
      flag: that named it.
      example: a file of that kind.

    Raises:
      InputError: if it cannot be read.
    """
    try:
        return tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"There is no {flag} to read.",
            where=f"--{flag}={path}",
            expected=f"a TOML file, as {example}",
            found=f"{type(error).__name__}: {error}",
        ) from error


def fill(
    made: type[Asked], given: Mapping[str, Any], name: str, where: str
) -> Asked:
    """A dataclass from a table: its fields are the keys that there are.

    Fields are of a plain type, a tuple of one (in the file a list, empty only
    if that is the default), or of what is for somebody else to check.

    Args:
      made: the dataclass.
      given: the table.
      name: of what the table is, for errors.
      where: it stands, for errors.

    Raises:
      InputError: naming the key that is missing, unknown or of another kind.
    """
    fields = {field.name: field for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    for key in given:
        if key not in fields:
            raise InputError(
                f"A {name} has no {key!r}.",
                where=where,
                fix=nearest(key, fields),
            )
    kinds = typing.get_type_hints(made)
    values = {}
    for key, field in fields.items():
        if key in given:
            empty = field.default == ()
            values[key] = _value(
                given[key], kinds[key], empty, key, name, where
            )
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise InputError(f"A {name} needs {key!r}.", where=where)
    return made(**values)


def _value(
    value: Any, kind: Any, empty: bool, key: str, name: str, where: str
) -> Any:
    many = typing.get_origin(kind) is tuple
    single = typing.get_args(kind)[0] if many else kind
    if single not in (bool, int, float, str):
        return value
    kinds = (int, float) if single is float else (single,)
    items = value if many else [value]
    fine = isinstance(items, list) and all(type(x) in kinds for x in items)
    if not fine or (many and not items and not empty):
        words = "a list, not empty, of " if many else ""
        raise InputError(
            f"Bad value of {key!r} in a {name}.",
            where=where,
            expected=words + single.__name__,
            found=repr(value),
        )
    return tuple(map(single, items)) if many else single(value)


# -- one run ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of many.

    Attributes:
      name: that no other has.
      flags: of `launch/train.py`.
      config: as these flags give it.
      workdir: where it lives.
    """

    name: str
    flags: tuple[str, ...]
    config: ConfigDict
    workdir: Path

    @property
    def state(self) -> str:
        """What there is of it: "finished", "begun" or "new"."""
        path = self.workdir / "results.json"
        if path.exists():
            then = json.loads(path.read_text())["config"]
            now = flatten(json.loads(json.dumps(self.config.to_dict())))
            before = written(then, now)
            # A shorter run goes on; another one is for the trainer to refuse.
            same = all(
                before.get(key) == now.get(key)
                for key in (before.keys() | now.keys()) - FREE
            )
            return "finished" if same else "begun"
        return "begun" if self.workdir.exists() else "new"


def describe(
    name: str, spec: str, values: Iterable[str], workdir: Path
) -> dict[str, Any]:
    """The fields of a `Trial`.

    Args:
      name: of it.
      spec: "FILE.py:ARGUMENT", the config.
      values: "key=value", what is set in it.
      workdir: where it is to live.

    Raises:
      InputError: unknown words and keys.
    """
    values = list(values)
    config = configs.load(spec)
    configs.override(config, values)
    flags = (
        f"--config={spec}",
        *(f"--config.{value}" for value in values),
        f"--workdir={workdir}",
    )
    return {"name": name, "flags": flags, "config": config, "workdir": workdir}


def command(trial: Trial, trainer: Path) -> list[str]:
    """What is run for it."""
    return [sys.executable, str(trainer), *trial.flags]


# -- running them -------------------------------------------------------------


def plan(made: Sequence[Trial], trainer: Path) -> str:
    """What would run, a line each, and what would not."""
    lines = []
    for trial in made:
        state = trial.state
        words = [] if state == "finished" else command(trial, trainer)
        lines.append(f"{state:8}  {trial.name}  {shlex.join(words)}".rstrip())
    left = sum(not line.startswith("finished") for line in lines)
    return "\n".join([*lines, f"{left} of {len(lines)} runs are to be made"])


def claim(output: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps an output directory from being worked in by two processes.

    Raises:
      InputError: if another one works in it.
    """
    output.mkdir(parents=True, exist_ok=True)
    return locks.alone(
        output / ".lock",
        "Another process makes its runs here.",
        output,
        "wait for it, or stop it; or give another --output",
    )


def run(
    made: Sequence[Trial], trainer: Path, output: Path, say: Say = print
) -> list[str]:
    """Makes the runs that are not finished, one after another.

    What each says goes to `logs/` under the output. Told to stop, the run
    that is under way stops in order, and with it all of this.

    Returns:
      What went wrong, a line each.
    """
    wrong = []
    for number, trial in enumerate(made, 1):
        if trial.state == "finished":
            continue
        say(f"[{number}/{len(made)}] {trial.name}")
        log = log_of(trial, output)
        status, told = call(command(trial, trainer), log, say)
        if trial.state != "finished":
            wrong.append(f"{trial.name}: status {status}; see {log}")
            say(wrong[-1])
        if told:
            wrong.append(TOLD)
            break
    return wrong


TOLD = "told to stop; the same command goes on from there"


def log_of(trial: Trial, output: Path) -> Path:
    """Where what a run says is kept."""
    return output / "logs" / f"{trial.name}.log"


def call(
    words: list[str],
    log: Path,
    say: Say = print,
    enough: Callable[[], bool] | None = None,
) -> tuple[int, bool]:
    """Runs a command; its status, and whether it was told to stop.

    Signals reach it through here alone, once each: in a session of its own,
    it hears nothing from the terminal. Should this process be killed, it runs
    on, with the log locked: whoever calls it again stops it first.

    Args:
      words: the command.
      log: file that what it says is added to.
      say: is told of a process that is stopped first.
      enough: is asked now and then; at its first True the command is told to
        stop.
    """
    told: list[int] = []
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        _take_over(out, log, say)
        with subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as child:

            def tell(number: int, _: Any) -> None:
                told.append(number)
                child.send_signal(number)

            stop = signal.SIGINT, signal.SIGTERM
            before = {number: signal.signal(number, tell) for number in stop}
            try:
                _owner(log).write_text(str(child.pid))
                return _wait(child, enough), bool(told)
            except BaseException:
                child.terminate()
                raise
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
                _owner(log).unlink(missing_ok=True)


def _wait(child: subprocess.Popen, enough: Callable[[], bool] | None) -> int:
    while enough is not None:
        try:
            return child.wait(_INTERVAL)
        except subprocess.TimeoutExpired:
            if enough():
                child.terminate()
                enough = None
    return child.wait()


def _owner(log: Path) -> Path:
    return log.with_suffix(".process")


def _take_over(out: IO, log: Path, say: Say) -> None:
    """Locks a log; whoever still writes it is told to stop, and waited for.

    That is a run whose caller was killed.
    """
    if locks.take(out):
        return
    number = _owner(log).read_text() if _owner(log).exists() else ""
    say(f"{log.stem}: stopping process {number or '?'}, which still runs it")
    if number:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(number), signal.SIGTERM)
    while not locks.take(out):
        time.sleep(_INTERVAL / 5)
