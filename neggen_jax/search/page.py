"""What a search leaves to be read: study.md, best.json and its figure."""

from __future__ import annotations

import json
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neggen_jax import plots, significance, storage
from neggen_jax.data import store
from neggen_jax.errors import InputError
from neggen_jax.search import finals
from neggen_jax.search.finals import Finalist
from neggen_jax.search.plots import draw
from neggen_jax.search.spec import Search, Value, setting
from neggen_jax.search.study import Study, Tried, best, most, text


def plan(
    search: Search,
    data: str,
    output: Path,
    trainer: Path,
    total: int,
    tried: Sequence[Tried],
) -> str:
    """What would be tried, and what has been."""
    total = most(search, total)
    width = max(map(len, search.space))
    lines = [f"{key:{width}}  {of}" for key, of in search.space.items()]
    lines.append(f"{search.metric} on valid; sampler {search.sampler.name}")
    lines.append(f"{_count(tried)}; {max(0, total - len(tried))} to be made")
    words = ["python", str(trainer), f"--config={search.config}"]
    for value in search.values(data):
        words.append(f"--config.{value}")
    words += [f"--config.{key}=..." for key in search.space]
    words.append(f"--workdir={output}/trials/trial-...")
    lines.append(shlex.join(words))
    if search.seeds:
        few = min(search.best, total)
        lines.append(
            f"then the best {few} and the config as it is, over the seeds "
            f"{', '.join(map(str, search.seeds))}: "
            f"{(few + 1) * len(search.seeds)} runs"
        )
    return "\n".join(lines)


def write(
    search: Search,
    data: str,
    output: Path,
    study: Study,
    finalists: Sequence[Finalist],
) -> str:
    """Writes what is known of a search so far; returns the page.

    Raises:
      InputError: no trial is finished.
    """
    tried = study.tried
    if not best(tried):
        raise InputError(
            "No trial is finished.",
            where=output,
            found=_count(tried),
            fix="see logs/ in the output",
        )
    importances = study.importances()
    dataset = store.describe(data)["name"]
    figure = draw(tried, search, importances, f"Search on {dataset}")
    plots.save(figure, str(output / "plots" / "study.png"))
    chosen = finals.choose(search, finalists)
    found = _best(search, data, best(tried)[0], chosen, finalists)
    here = storage.path(output)
    storage.write(
        here / "best.json", (json.dumps(found, indent=2) + "\n").encode()
    )
    page = "\n".join(
        [
            f"# Search on {dataset}",
            "",
            *_asked(search),
            "",
            f"{_count(tried)}.",
            "",
            "![History, curves and slices](plots/study.png)",
            "",
            *_result(search, found, finalists, chosen),
            "## Trials",
            "",
            *_table(search, tried, importances),
            "",
        ]
    )
    storage.write(here / "study.md", page.encode())
    return page


def _best(
    search: Search,
    data: str,
    first: Tried,
    chosen: Finalist | None,
    finalists: Sequence[Finalist],
) -> dict[str, Any]:
    """What `best.json` holds."""
    params = dict(first.params if chosen is None else chosen.params)
    name = f"trial-{first.number:03}" if chosen is None else chosen.name
    words = ["python", "launch/train.py", f"--config={search.config}"]
    own = f"data.path={data}", f"train.metric={search.metric}"
    for value in (*search.set, *own):
        words.append(f"--config.{value}")
    words += [f"--config.{setting(*pair)}" for pair in params.items()]
    found: dict[str, Any] = {
        "trial": name,
        "params": params,
        "metric": search.metric,
        "command": shlex.join([*words, "--workdir=DIR"]),
    }
    if chosen is None:
        return found | {"valid": first.value}
    rows = finals.tested(search, finalists, chosen)
    return found | {
        "seeds": list(search.seeds),
        "valid": statistics.fmean(chosen.valid(search.metric)),
        "test": {row["method"]: _plain(row) for row in rows},
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it, which knows no NaN."""
    return {
        metric: {k: v if v == v else None for k, v in value.items()}
        for metric, value in row.items()
        if isinstance(value, dict)
    }


def _asked(search: Search) -> list[str]:
    settings = ", ".join(f"`{x}`" for x in search.set) or "nothing"
    sampler, pruner = search.sampler, search.pruner
    early = (
        "none is ended early"
        if pruner.name == "none"
        else f"ended early below the {pruner.name} of others at an epoch"
    )
    return [
        f"`{search.config}`, set for all: {settings}. A trial is worth its "
        f"highest {search.metric} on valid; test is read of no trial. Sampler "
        f"{sampler.name}, seed {sampler.seed}; {early}.",
        "",
        *(f"- `{key}`: {of}" for key, of in search.space.items()),
    ]


def _count(tried: Sequence[Tried]) -> str:
    counts = Counter(x.state for x in tried)
    said = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{len(tried)} trials" + f": {said}" * bool(said)


def _result(
    search: Search,
    found: Mapping[str, Any],
    finalists: Sequence[Finalist],
    chosen: Finalist | None,
) -> list[str]:
    """The best, as a command; and what it is worth over seeds."""
    lines = ["## Best", "", f"{found['trial']}:", ""]
    lines += ["```", found["command"], "```", ""]
    if not finalists:
        lines += ["By one run: with `seeds`, the best are made again.", ""]
        return lines
    lines += [f"{search.metric} on valid over the seeds:", ""]
    lines += ["| config | seeds | mean | standard deviation |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for finalist in finalists:
        values = finalist.valid(search.metric)
        mean = f"{statistics.fmean(values):.4f}" if values else ""
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        lines.append(f"| {finalist.name} | {len(values)} | {mean} | {spread} |")
    if chosen is None:
        return [*lines, "", "Not all of these runs are finished.", ""]
    said = "Nothing that was tried is better than the config as it is."
    if chosen.name != finals.DEFAULT:
        said = f"{chosen.name} is chosen."
    rows = finals.tested(search, finalists, chosen)
    said += " Test, mean ± standard deviation over seeds, difference with its "
    said += "95 % interval, paired t-tests over users and over seeds:"
    return [*lines, "", said, "", significance.markdown(rows)]


def _table(
    search: Search, tried: Sequence[Tried], importances: Mapping[str, float]
) -> list[str]:
    """All trials, the best first, then as they were made."""
    order = {"finished": 0, "pruned": 1, "begun": 2, "failed": 3}
    keys = list(search.space)
    lines = [
        "| trial | " + " | ".join(f"`{key}`" for key in keys) + " | "
        f"{search.metric} | at epoch | state |",
        "| --- | " + "---: | " * (len(keys) + 2) + "--- |",
    ]
    for x in sorted(
        tried, key=lambda x: (order[x.state], -(x.value or 0.0), x.number)
    ):
        value = "" if x.value is None else f"{x.value:.4f}"
        cells = [str(x.number), *map(text, _params(x, keys)), value]
        state = f"{x.state}: {x.reason}" if x.reason else x.state
        cells += ["" if x.epoch is None else str(x.epoch), state]
        lines.append(f"| {' | '.join(c.replace('|', ' ') for c in cells)} |")
    if importances:
        shares = ", ".join(f"`{k}` {v:.2f}" for k, v in importances.items())
        lines += ["", f"Importance among finished trials (fANOVA): {shares}."]
    return lines


def _params(tried: Tried, keys: Sequence[str]) -> list[Value]:
    return [tried.params.get(key, "") for key in keys]
