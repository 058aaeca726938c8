"""What launch/recommend.py calls, and what it says on the terminal."""

from __future__ import annotations

import os
from typing import Any

from neggen_jax.recommend import folding
from neggen_jax.recommend.export import export as write
from neggen_jax.recommend.recommend import recommend
from neggen_jax.recommend.trained import Trained, load, with_new

Path = str | os.PathLike[str]


def opened(
    workdir: Path,
    data: str | None,
    items: Path | None,
    models: dict[str, str | None],
) -> Trained:
    """The run, with new items if there is a file of them."""
    trained = load(workdir, data)
    return trained if items is None else with_new(trained, items, models)


def lists(
    trained: Trained, users: Path | None, output: Path | None, **options: Any
) -> None:
    """Writes or prints recommendations; shows how far they are."""
    if output is None:
        recommend(trained, users, **options)
        return
    from rich.console import Console
    from rich.progress import Progress

    total = None if users is not None else len(trained.user_names)
    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("users", total=total)
        count = recommend(
            trained,
            users,
            output,
            progress=lambda n: bar.advance(task, n),
            **options,
        )
    print(f"{count:,} users, lists of at most {options['k']}: {output}")


def measure(trained: Trained) -> None:
    """Prints the metric of users by their own vectors, and folded in."""
    found = folding.measure(trained.run, trained.params)
    name = trained.run.config.encoder.name
    print(f"{found['metric']} on {found['split']}, {name}")
    for word in ("trained", "folded", "alone"):
        if word in found:
            print(f"  {word:<10}{found[word]:.4f}")


def export(trained: Trained, directory: Path, **options: Any) -> None:
    """Writes an export, and prints what it holds."""
    manifest = write(trained, directory, **options)
    for name, file in manifest["files"].items():
        print(f"  {name:<24}{file['bytes']:>14,} bytes")
    if "ann" in manifest:
        ann = manifest["ann"]
        print(f"recall@{ann['k']} of {ann['index']}: {ann['recall']:.4f}")
    print(f"exported to {directory}")
