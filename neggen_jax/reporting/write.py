"""Writes the report of a run, or of two: a page, and the same as Markdown.

`launch/report.py` calls `write`, and `neggen_jax/train.py` calls `conclude`
when a run has finished.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import PurePath

from etils import epath

from neggen_jax import history, storage
from neggen_jax.catalog import Catalog
from neggen_jax.errors import InputError
from neggen_jax.history import Workdir
from neggen_jax.reporting import (
    as_html,
    as_markdown,
    beside,
    comparison,
    figures,
    single,
)
from neggen_jax.reporting.document import Document
from neggen_jax.reporting.shop import Shop
from neggen_jax.reporting.told import Told
from neggen_jax.workdir import writing

PAGE = "report.html"
# Items of a dataset whose titles are read at the end of a run.
MOST = 200_000


def write(
    workdir: Workdir,
    other: Workdir | None = None,
    output: Workdir | None = None,
    *,
    data: str | None = None,
    catalog: Catalog | None = None,
    most: float = math.inf,
    seed: int = 0,
) -> tuple[epath.Path, epath.Path]:
    """Writes a report.

    Args:
      workdir: of a finished run.
      other: of a second one, to stand beside it.
      output: the page; by default `report.html` in the workdir, or
        `beside_<name of the other>.html`. The Markdown is put beside it.
      data: where the dataset is now, if it has moved.
      catalog: the dataset, if it is in memory.
      most: items of a dataset whose titles and pictures are shown; see
        `Shop.open`.
      seed: of intervals and of the choice of examples.

    Returns:
      The page, and the Markdown.

    Raises:
      InputError: a run has not finished, two cannot be compared, the dataset
        named by `data` is not theirs, or the report cannot be written.
    """
    names = history.names([workdir] if other is None else [workdir, other])
    one = Told.read(workdir, names[0])
    shop = _shop(one, data, catalog, most)
    if other is None:
        target = storage.path(output or one.directory / PAGE)
        document = _single(one, shop, target, seed)
    else:
        two = Told.read(other, names[1])
        beside.check(one, two)
        name = f"beside_{PurePath(two.name).name}.html"
        target = storage.path(output or one.directory / name)
        document = _beside(one, two, shop, target, seed)
    return _save(document, target)


def conclude(
    workdir: Workdir, catalog: Catalog, *, report: bool, anew: bool
) -> None:
    """Draws a run that has finished, and writes its report.

    If the report fails it is a warning: the run has finished all the same.

    Args:
      workdir: of the run.
      catalog: its dataset.
      report: whether it gets one.
      anew: also what is there already.
    """
    directory = storage.path(workdir)
    if anew or not (directory / "plots").exists():
        figures.plot_run(workdir)
    if not report or (not anew and (directory / PAGE).exists()):
        return
    try:
        write(workdir, catalog=catalog, most=MOST)
    except Exception as error:
        reason = storage.first_line(error)
        print(
            f"warning: the run has finished, but its report has not been "
            f"written ({type(error).__name__}: {reason}); "
            f"launch/report.py --workdir={workdir} tries again",
            file=sys.stderr,
        )


def _shop(
    told: Told, data: str | None, catalog: Catalog | None, most: float
) -> Shop | None:
    """The dataset; without it a report has no examples, and says so."""
    try:
        return Shop.open(told, data, catalog, most)
    except InputError:
        if data is not None:
            raise
        return None


def _single(
    told: Told, shop: Shop | None, target: epath.Path, seed: int
) -> Document:
    drawn = told.directory / "plots"
    if not drawn.exists():
        with writing(told.directory):
            figures.plot_run(told.directory)
    there = {path.name for path in drawn.iterdir()}

    def link(name: str) -> str:
        # Of a name that is still to be filled in, the plot is there.
        if name not in there and "{}" not in name:
            return ""
        return _relative(drawn / name, target)

    return single.make(told, shop, link, seed)


def _beside(
    one: Told, two: Told, shop: Shop | None, target: epath.Path, seed: int
) -> Document:
    file = target.parent / f"{target.stem}_plots" / "curves.png"
    with writing(target.parent):
        comparison.plot_comparison([one.directory, two.directory], file)
    return beside.make(one, two, shop, _relative(file, target), seed)


def _relative(path: epath.Path, target: epath.Path) -> str:
    """What a page in one place calls a file in another."""
    if storage.remote(path) or storage.remote(target):
        path, start = PurePath(path), PurePath(target.parent)
        inside = path.is_relative_to(start)
        return str(path.relative_to(start) if inside else path)
    return PurePath(os.path.relpath(path, target.parent)).as_posix()


def _save(
    document: Document, target: epath.Path
) -> tuple[epath.Path, epath.Path]:
    twin = target.with_suffix(".md")
    if twin == target:
        raise InputError(
            "The page would be overwritten by its Markdown.",
            where=target,
            fix="name a file that ends with .html",
        )
    with writing(target.parent):
        storage.write(target, as_html.render(document).encode())
        storage.write(twin, as_markdown.render(document).encode())
    return target, twin
