"""What a page about a counterfactual set says, however it is laid out.

Filled by `inspect.py`; laid out by `page_html.py`.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
from typing import Any

from neggen_jax.generation.records import MODALITIES, Record
from neggen_jax.generation.sets import merging


@dataclasses.dataclass(frozen=True)
class Shown:
    """One item on the page.

    Attributes:
      item: index of the item.
      id: the source's own identifier.
      title: of the item; "" where there is none.
      picture: JPEG; b"" where there is none.
      picture_file: where it is; "" where there is none.
      trouble: why the picture cannot be shown; "" if it can, or there is none.
      records: of the item, by modality.
    """

    item: int
    id: str
    title: str
    picture: bytes
    picture_file: str
    trouble: str
    records: tuple[Record, ...]

    @property
    def failed(self) -> bool:
        """Whether one of its records did."""
        return any(not record.accepted for record in self.records)


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
      title: names set and dataset.
      about: (label, value) of how the set came about.
      notes: what the reader must know of the figures, if anything.
      figures: of `summary.summary`.
      items: random ones.
      having_failed: items of which a record failed, in all.
      failures: records that failed, of each kind of reason some.
    """

    title: str
    about: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    figures: dict[str, Any]
    items: tuple[Shown, ...]
    having_failed: int
    failures: tuple[Record, ...]


def data_url(data: bytes, kind: str) -> str:
    """A picture as a part of the page itself."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def table(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Figures by modality.

    Returns:
      Rows; the first holds the modalities, the first of each row its label.
    """
    told = figures["modalities"]
    names = [m for m in MODALITIES if m in told]
    return [
        ("", *names),
        *(
            (label, *(tell(told[name]) for name in names))
            for label, tell in _ROWS
        ),
    ]


def headlines(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, in full) of the whole set, the first to be seen."""
    found = [
        (
            percent(figures["rate"]),
            "accepted",
            f"{figures['accepted']:,} of {figures['records']:,} records",
        )
    ]
    sizes = figures["items"]
    if sizes:
        most = max(sizes, key=int)
        kind = "with counterfactuals"
        if most == "2":
            kind = "with counterfactuals of both modalities"
        rest = sum(sizes.values()) - sizes[most]
        told = f"{rest:,} more with one of them" if rest else ""
        found.append((f"{sizes[most]:,}", f"items {kind}", told))
    requests = figures["attempts"]
    if requests > figures["records"]:  # not of a writer that asks nobody
        each = requests / max(1, figures["records"])
        found.append(
            (f"{each:.2f}", "requests a record", f"{requests:,} in all")
        )
    balance = figures["balance"]
    if balance and balance["ratio"] is not None:
        moved = ", ".join(
            f"{m} {d:.3f}" for m, d in balance["distance"].items()
        )
        found.append(
            (
                f"{balance['ratio']:.2f}",
                "balance of the modalities",
                f"mean cosine distance: {moved}",
            )
        )
    return found


def drawn(content: Page) -> str:
    """Headline of the items that are shown."""
    failed = sum(shown.failed for shown in content.items)
    number = len(content.items)
    some = f"{number:,} random item" + ("" if number == 1 else "s")
    if failed:
        some += (
            f", {failed:,} of them from the {content.having_failed:,} "
            "that failed"
        )
    return some


def by_reason(content: Page) -> list[tuple[str, int, list[Record]]]:
    """(kind of reason, how many records, those that are listed), most first."""
    counts: collections.Counter[str] = collections.Counter()
    for about in content.figures["modalities"].values():
        counts.update(about["reasons"])
    found: dict[str, list[Record]] = {kind: [] for kind in counts}
    for record in content.failures:
        found[merging.reason_kind(record.error)].append(record)
    return [(kind, n, found[kind]) for kind, n in counts.most_common()]


def listed(content: Page) -> str:
    """Headline of the failed records."""
    total, number = content.figures["failed"], len(content.failures)
    if number < total:
        return f"{number:,} of {total:,} failed records, of all kinds"
    return f"{total:,} failed record" + ("" if total == 1 else "s")


def percent(share: float | None) -> str:
    """A share as a person reads it."""
    if share is None:
        return "-"
    text = f"{100 * share:.1f}%"
    # Rounding hides neither the last failure nor the first success.
    if text == "100.0%" and share < 1:
        return "> 99.9%"
    return "< 0.1%" if text == "0.0%" and share > 0 else text


def _of(part: str, whole: str) -> Any:
    def tell(about: dict[str, Any]) -> str:
        total = about[whole]
        share = percent(about[part] / total) if total else "-"
        return f"{about[part]:,} ({share})"

    return tell


def _sizes(about: dict[str, Any]) -> str:
    sizes = about["attributes_changed"]
    total = sum(sizes.values())
    return ", ".join(
        f"{size}: {percent(n / total)}" for size, n in sizes.items()
    )


def _spread(name: str, inner: str = "") -> Any:
    def tell(about: dict[str, Any]) -> str:
        found = about[name]
        if found and inner:
            found = found[inner]
        if not found:
            return "-"
        low, high = found["quantiles"]["5"], found["quantiles"]["95"]
        return f"{found['mean']:.2f} ({low:.2f} to {high:.2f})"

    return tell


# Label of a figure of a modality, and how it is told.
_ROWS = (
    ("records", lambda about: f"{about['records']:,}"),
    ("accepted", _of("accepted", "records")),
    ("counterfactuals", lambda about: f"{about['counterfactuals']:,}"),
    ("attributes changed at once", _sizes),
    ("share of words changed", _spread("words_changed")),
    ("cosine with its counterfactual", _spread("similarity")),
    ("cosine of two random items", _spread("similarity", "items")),
    ("different counterfactuals", _of("different", "counterfactuals")),
    ("different descriptions", _of("different_descriptions", "described")),
    ("same as the description", lambda about: f"{about['unchanged']:,}"),
    ("twice for one item", lambda about: f"{about['repeated']:,}"),
)
