"""A progress bar on the terminal, and plain lines where there is none."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import jax

from neggen_jax.history import label

if TYPE_CHECKING:
    from neggen_jax.run import Run
    from neggen_jax.saving import Meta

# Seconds between two plain lines.
_INTERVAL = 10.0


class Progress:
    """Shows epochs done, the last value on valid, the best, and speed.

    Only process 0 says anything.

    Args:
      run: that is trained.
      meta: how far it has come.
      step: that it goes on from.
    """

    def __init__(self, run: Run, meta: Meta, step: int):
        config = run.config
        self._total, self._metric = config.train.epochs, config.train.metric
        self._patience = config.train.patience
        self._title = f"{config.encoder.name} on {run.catalog.name}"
        encoder, sources = (
            label(config[key].to_dict()) for key in ("encoder", "negatives")
        )
        self._whole = (
            f"{encoder} with {sources} negatives on {run.catalog.name}"
        )
        self._from = config.train.start_from
        self._start, self._step = meta.epochs, step
        self._quiet = jax.process_index() != 0
        self._said = time.monotonic()
        self._bar: Any = None
        self._text = ""

    def __enter__(self) -> Progress:
        if self._quiet:
            return self
        begun = f"new, from {self._from}" if self._from else "new"
        if self._step:
            begun = f"going on from epoch {self._start}, step {self._step}"
        print(f"{self._whole}: {begun}; compiling first", flush=True)
        if sys.stderr.isatty():
            self._bar = self._make_bar()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._start, said=""
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._text and not self._quiet:
            print(f"{self._title}: {self._text}", flush=True)

    def show(self, meta: Meta, value: float | None) -> None:
        """Shows the state after an epoch."""
        if meta.best_value is None:
            return
        now = "" if value is None else f"{self._metric} {value:.4f}, "
        self._text = (
            f"epoch {meta.epochs}/{self._total}, {now}"
            f"best {meta.best_value:.4f} ({meta.worse} evaluations ago)"
        )
        # Of an epoch that another process began there is no time.
        if meta.epoch_seconds:
            self._text += f", {meta.epoch_seconds[-1]:.2f} s/epoch"
        if 0 < self._patience <= meta.worse and meta.epochs < self._total:
            self._text += "; over, as nothing was better (train.patience)"
        if self._bar is not None:
            self._bar.update(self._task, completed=meta.epochs, said=self._text)
        elif not self._quiet and time.monotonic() - self._said > _INTERVAL:
            self._said = time.monotonic()
            print(f"{self._title}: {self._text}", flush=True)

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        return Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
