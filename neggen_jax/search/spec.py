"""What a search is asked for: a TOML file, such as docs/search.toml.

Everything in it is checked here, before anything is made.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from neggen_jax import config as configs
from neggen_jax import storage, trials
from neggen_jax.config import flatten
from neggen_jax.data import store
from neggen_jax.errors import InputError, nearest, nearest_key
from neggen_jax.metrics import NAMES
from neggen_jax.trials import FREE

Value = bool | int | float | str

SAMPLERS = "tpe", "random", "grid"
PRUNERS = "median", "none"

# Config keys that a search sets itself -> what says so instead.
_OWN = {"data.path": "--data", "train.metric": "the key metric"}
# Of the identity of a search, as a person would say it.
_SAID = "config", "dataset", "space", "sampler", "pruner"


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between two, which are both included.

    Attributes:
      low, high: the least and the greatest.
      log: whether orders of magnitude are drawn evenly, rather than numbers.
      step: from `low` on; 0 for all numbers, of an integer key 1.
      whole: whether they are integers, as the config's key has it.
    """

    low: float
    high: float
    log: bool = False
    step: float = 0.0
    whole: bool = False

    def __str__(self) -> str:
        step = f" in steps of {self.step}" if self.step else ""
        return f"{self.low} to {self.high}{step}" + ", log" * self.log

    @property
    def values(self) -> list[float] | None:
        """All of them; None if they cannot be counted."""
        if not self.step:
            return None
        count = round((self.high - self.low) / self.step) + 1
        found = [self.low + number * self.step for number in range(count)]
        # Not .30000000000000004.
        return [min(round(value, 12), self.high) for value in found]


@dataclasses.dataclass(frozen=True)
class Choices:
    """Values of any kind."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.values))


Space = Mapping[str, Range | Choices]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Who says what to try next.

    Attributes:
      name: "tpe", "random" or "grid".
      seed: of what is random in it.
      startup: trials that "tpe" draws at random first.
    """

    name: str = "tpe"
    seed: int = 0
    startup: int = 10


@dataclasses.dataclass(frozen=True)
class Pruner:
    """Who ends a trial early.

    Attributes:
      name: "median", if at an epoch its best is below the median of what
        others had there, or "none".
      startup: finished trials before the first may be ended.
      warmup: epoch before which none is.
    """

    name: str = "median"
    startup: int = 5
    warmup: int = 0


@dataclasses.dataclass(frozen=True)
class Search:
    """What a TOML file asks for.

    Attributes:
      config: "FILE.py:ARGUMENT".
      space: config key -> the values to try.
      set: "key=value", for all trials.
      metric: of valid; the highest over the epochs is what a trial is worth.
      sampler, pruner: see there.
      best: trials that are made again over `seeds`.
      seeds: of these runs; none if empty.
    """

    config: str
    space: Space
    set: tuple[str, ...] = ()
    metric: str = "recall@20"
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    best: int = 3
    seeds: tuple[int, ...] = ()

    def values(self, data: str) -> list[str]:
        """What is set in the config of every run."""
        own = f"data.path={data}", f"train.metric={self.metric}"
        # Nobody looks at the page of each.
        return ["evaluate.report=False", *self.set, *own]

    def base(self, data: str) -> ConfigDict:
        """The config, before anything is tried in it."""
        config = configs.load(self.config)
        configs.override(config, self.values(data))
        return config

    @property
    def grid(self) -> list[dict[str, Value]]:
        """All points of a space whose values can be counted."""
        values = [of.values or () for of in self.space.values()]
        return [
            dict(zip(self.space, point, strict=True))
            for point in itertools.product(*values)
        ]


def read(path: str) -> Search:
    """Reads a search's TOML file.

    Raises:
      InputError: for whatever cannot be searched, by its key.
    """
    given = trials.read_toml(path, "search", "docs/search.toml")
    where = str(path)
    for key, made in (("sampler", Sampler), ("pruner", Pruner)):
        table = given.get(key, {})
        # A name says all, if the rest is as usual.
        table = {"name": table} if isinstance(table, str) else table
        if not isinstance(table, dict):
            raise _bad(key, where, "a name or a table", table)
        given[key] = trials.fill(made, table, key, f"{where}, [{key}]")
    search = trials.fill(Search, given, "search", where)
    _one_of(search.sampler.name, SAMPLERS, "sampler", where)
    _one_of(search.pruner.name, PRUNERS, "pruner", where)
    for key, least, value in (
        ("sampler.seed", 0, search.sampler.seed),
        ("sampler.startup", 1, search.sampler.startup),
        ("pruner.startup", 1, search.pruner.startup),
        ("pruner.warmup", 0, search.pruner.warmup),
        ("best", 1, search.best),
    ):
        if value < least:
            raise _bad(key, where, f"{least} or more", value)
    if search.metric.startswith("test"):
        raise InputError(
            "A search does not read test: what is chosen on it tells nothing.",
            where=f"{where}, metric",
            expected="a metric, which is then that of valid",
            found=repr(search.metric),
        )
    config = _config(search, where)
    return dataclasses.replace(
        search, space=dict(_space(search, config, where))
    )


def _config(search: Search, where: str) -> ConfigDict:
    """The config to search in; refuses what is set twice.

    Raises:
      InputError: see `read`.
    """
    for key in [*(x.partition("=")[0] for x in search.set), *search.space]:
        if key in _OWN:
            raise InputError(
                f"A search sets {key!r} itself.",
                where=where,
                expected=_OWN[key],
            )
    config = search.base("data")
    metrics = [f"{x}@{k}" for x in NAMES for k in config.evaluate.cutoffs]
    _one_of(search.metric, metrics, "metric", where)
    if config.seed in search.seeds:
        raise InputError(
            "The best trials would be made again with the seed they had.",
            where=f"{where}, seeds",
            expected=f"seeds other than {config.seed}: with that one, they "
            "may have been the best by luck",
            found=list(search.seeds),
        )
    return config


def _space(
    search: Search, config: ConfigDict, where: str
) -> Iterator[tuple[str, Range | Choices]]:
    """Each key of the space with its values, as the config takes them.

    Raises:
      InputError: see `read`.
    """
    known = flatten(config)
    constant = {x.partition("=")[0] for x in search.set}
    if not isinstance(search.space, dict) or not search.space:
        raise _bad("space", where, "a table of config keys", search.space)
    for key, given in _keys(search.space):
        here = f"{where}, [space] {key}"
        if key not in known:
            raise InputError(
                f"Unknown config key {key!r}.",
                where=here,
                fix=nearest_key(key, known),
            )
        if key == "seed" or key in constant:
            raise InputError(
                f"{key!r} cannot be searched.",
                where=here,
                found="a seed, which is luck" if key == "seed" else "it is set",
            )
        made = _values(given, type(known[key]), here)
        ends = (
            made.values if isinstance(made, Choices) else (made.low, made.high)
        )
        for value in ends:
            # The config says itself which values it does not take.
            configs.override(ConfigDict(config), [setting(key, value)])
        if search.sampler.name == "grid" and made.values is None:
            raise _bad(key, here, "a list, or a step, for a grid", given)
        yield key, made


def _keys(table: Mapping[str, Any], above: str = "") -> Iterator[tuple]:
    """Dotted keys of a space, in quotes or not, with what stands there."""
    ends = {field.name for field in dataclasses.fields(Range)}
    for key, value in table.items():
        inner = isinstance(value, dict) and not ends & value.keys()
        if inner and value:
            yield from _keys(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _values(given: Any, kind: type, where: str) -> Range | Choices:
    if isinstance(given, list):
        plain = all(isinstance(x, bool | int | float | str) for x in given)
        if not given or not plain or len({*map(repr, given)}) < len(given):
            raise _bad("choices", where, "different values, not lists", given)
        return Choices(tuple(given))
    if not isinstance(given, dict) or kind not in (int, float):
        ranges = "{low=, high=} or " * (kind in (int, float))
        raise _bad("space", where, f"{ranges}a list of values", given)
    if "whole" in given:
        raise InputError("A range has no 'whole'.", where=where)
    found = trials.fill(Range, given, "range", where)
    whole = kind is int
    if whole and not found.log:
        found = dataclasses.replace(found, step=found.step or 1.0)
    numbers = found.low, found.high, found.step
    finite = all(map(math.isfinite, numbers))
    steps = finite and (found.high - found.low) / (found.step or 1)
    for fine, expected in (
        (finite, "finite numbers"),
        (
            not whole or all(x == round(x) for x in numbers),
            "integers, as the config has one there",
        ),
        (found.low < found.high, "low below high"),
        (not found.log or found.low > 0, "low above 0, as log is true"),
        (not (found.log and given.get("step")), "a step, or log, not both"),
        (found.step >= 0, "a step above 0"),
        (
            not found.step or abs(steps - round(steps)) < 1e-9,
            "high a whole number of steps above low",
        ),
    ):
        if not fine:
            raise _bad("range", where, expected, given)
    if not whole:
        return found
    low, high, step = map(int, numbers)
    return dataclasses.replace(found, low=low, high=high, step=step, whole=True)


def setting(key: str, value: Value) -> str:
    """ "key=value", as a config and a command line take it."""
    return f"{key}={value}"


def _one_of(value: str, known: tuple | list, key: str, where: str) -> None:
    if value not in known:
        raise InputError(
            f"Unknown {key} {value!r}.", where=where, fix=nearest(value, known)
        )


def _bad(key: str, where: str, expected: str, found: object) -> InputError:
    return InputError(
        f"Bad value of {key!r} in a search.",
        where=where,
        expected=expected,
        found=found,
    )


# -- whether it is the same search --------------------------------------------


def claim(search: Search, data: str, output: Path) -> None:
    """Ties an output directory to one search, or checks that it is its own.

    Raises:
      InputError: saying what is another than it was.
    """
    path = storage.path(output) / "search.json"
    config = flatten(search.base(data))
    now = json.loads(
        json.dumps(
            {
                "config": {k: v for k, v in config.items() if k not in FREE},
                "dataset": store.describe(data)["fingerprint"],
                "space": {key: str(of) for key, of in search.space.items()},
                "sampler": dataclasses.asdict(search.sampler),
                "pruner": dataclasses.asdict(search.pruner),
            }
        )
    )
    if not path.exists():
        storage.write(path, (json.dumps(now, indent=2) + "\n").encode())
        return
    then, found = json.loads(path.read_text()), []
    for part in _SAID:
        before, after = (
            x if isinstance(x, dict) else {"": x}
            for x in (then.get(part), now[part])
        )
        found += [
            f"{part} {key}: {before.get(key)} -> {after.get(key)}".replace(
                " :", ":"
            )
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
    if found:
        raise InputError(
            "The output belongs to another search.",
            where=output,
            found="; ".join(found),
            fix="give the same search to go on, or choose another --output",
        )
