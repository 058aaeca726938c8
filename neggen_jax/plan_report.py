"""Plans in words, in a table and as JSON.

Each number says where it comes from: the compiler, the shapes of arrays, or
a data sheet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from neggen_jax.config import flatten
from neggen_jax.plan import Plan
from neggen_jax.roofline import Times, Topology

_COMPILERS = {
    "tpu": "the TPU compiler (libtpu)",
    "cpu": "the CPU's compiler, as libtpu is not installed: temporaries and "
    "bytes moved are those of a CPU",
}
_PROGRAMS = {
    "prepare": "an epoch's preparation",
    "train": "a step of training",
    "encode": "encoding everybody",
    "rank": "ranking a block",
}
_RESOURCES = {"compute": "compute", "hbm": "HBM", "interconnect": "links"}

Tried = list[tuple[dict[str, Any], Plan]]


def text(plan: Plan, tried: Tried) -> str:
    """One plan, for people.

    Args:
      plan: what is told.
      tried: from `plan.remedies`, if it does not fit.
    """
    case, chip = plan.case, plan.case.topology.chip
    mesh = " x ".join(f"{k}={v}" for k, v in plan.mesh.items())
    lines = [
        f"{case.name} on {case.topology}, mesh {mesh}",
        f"  {case.users:,} users, {case.items:,} items, "
        f"{case.interactions:,} train interactions",
        f"  compiled by {_COMPILERS[plan.measured_by]}; no array was made",
        "",
        "Memory of one device while it trains, GiB",
    ]
    lines += [_row(name, size) for name, size in _memory(plan)]
    lines += [
        _row("total", plan.total("train")),
        _row("usable", plan.limit),
        _row("left", plan.limit - plan.total("train")),
        "  compiler: temporaries, program; shapes in the compiler's layouts: "
        "all else.",
        f"  usable: what the compiler allows; the sheet says {chip.hbm:g} GiB"
        + (f" for {plan.devices} devices." if plan.devices > 1 else "."),
        "",
        "Programs, one run on one device",
        f"  {'':<24}{'GiB':>8}{'GFLOP':>10}{'GB moved':>10}{'GB recv':>10}"
        f"{'ms':>10}  bound",
    ]
    for name, phase in plan.phases.items():
        counts, times = phase.counts, plan.times(name)
        received = sum(counts.collectives.values())
        lines.append(
            f"  {_PROGRAMS[name]:<24}{plan.total(name) / 2**30:>8.2f}"
            f"{counts.flops / 1e9:>10.2f}{counts.bytes / 1e9:>10.2f}"
            f"{received / 1e9:>10.3f}{times.least * 1e3:>10.3f}  "
            + _bound(times)
        )
    lines += [
        "  GiB: everything that is there meanwhile. GFLOP, GB: counted in the",
        "  compiled program, loops by their rounds, padding included, HBM",
        "  only; received: by ring algorithms. ms: estimated, a roofline of",
        f"  {chip.flops / 1e12:g} TFLOP/s (bfloat16), {chip.bandwidth / 1e9:g} "
        f"GB/s of HBM and {chip.links / 1e9:g} GB/s",
        f"  over all links ({chip.source}): a least time, not a forecast.",
        *_distance(case.topology),
        "",
        "Received in a step, by kind, GB: " + (_collectives(plan) or "nothing"),
        f"An epoch: {plan.steps:,} steps, at least {_time(plan.epoch_seconds)}."
        f" An evaluation: {plan.blocks:,} blocks, at least "
        f"{_time(plan.evaluation_seconds)}.",
        "",
    ]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join([*lines, *_verdict(plan, tried)])


def _row(name: str, size: int) -> str:
    return f"  {name:<24}{size / 2**30:>10.3f}"


def _distance(topology: Topology) -> list[str]:
    if topology.chips == 1:
        return []
    return [
        f"  What all send to all takes {topology.distance:.1f} links to arrive."
    ]


def _memory(plan: Plan) -> list[tuple[str, int]]:
    """What a device holds while it trains; nothing that is not there."""
    phase = plan.phases["train"]
    rows = {
        **plan.held,
        "epoch's own, batches": plan.passing["train"],
        "temporaries": phase.temporaries,
        "results, program": phase.results + phase.code,
    }
    return [(name, size) for name, size in rows.items() if size]


def _verdict(plan: Plan, tried: Tried) -> list[str]:
    if plan.fits:
        return [
            f"It fits: {plan.left / 2**30:.2f} GiB are left in "
            f"{_PROGRAMS[plan.worst]}, which needs most."
        ]
    lines = []
    for name, phase in plan.phases.items():
        over = plan.total(name) - plan.limit
        if over > 0 or phase.refused:
            lines.append(
                f"It does not fit: {_PROGRAMS[name]} needs "
                f"{plan.total(name) / 2**30:.2f} GiB, "
                f"{over / 2**30:.2f} too much."
            )
            if phase.refused:
                lines.append(f"  the compiler: {phase.refused}")
    table = max(plan.held, key=lambda name: plan.held[name])
    lines.append(
        f"Of what stays all the time, {table} take most, "
        f"{_gib(plan.held[table])} GiB. More devices leave "
        f"{_gib(sum(plan.whole.values()))} GiB of it on each"
        f"{_named(plan.whole)}."
    )
    lines.append("What takes most, GiB on a device:")
    lines += [f"  {size / 2**30:9.3f}  {what}" for size, what in blame(plan)]
    if tried:
        lines.append("Tried, each with what stands before it:")
    for changes, other in tried:
        lines.append(
            f"  {_flags(changes)}: {other.total(other.worst) / 2**30:.2f} GiB"
            f" in {_PROGRAMS[other.worst]}, "
            + ("which fits" if other.fits else "which does not fit")
        )
    if tried and tried[-1][1].fits:
        return [*lines, f"It would fit with {_flags(tried[-1][0])}"]
    if tried:
        lines.append("No config key that was tried makes it fit; then, most is")
        lines += [
            f"  {size / 2**30:9.3f}  {what}"
            for size, what in blame(tried[-1][1])
        ]
    return lines


def blame(plan: Plan, count: int = 8) -> list[tuple[int, str]]:
    """The largest things in the neediest program, tables and temporaries.

    Temporaries are not all there at the same time.
    """
    name = plan.worst
    rows = [
        (size, f"{table}, all the time") for table, size in plan.held.items()
    ]
    if name in plan.passing:
        what = "inputs that are an epoch's own, and batches"
        other = "the tables that are ranked"
        rows.append((plan.passing[name], what if name == "train" else other))
    for size, number, array, origin in plan.phases[name].largest:
        times = f"{number} x " if number > 1 else ""
        where = origin.partition("/")[2] or "the loop's own"
        rows.append((size, f"{times}{array}, temporary: {where}"))
    return sorted(rows, key=lambda row: -row[0])[:count]


def _named(sizes: Mapping[str, int]) -> str:
    # Counters and biases are not worth telling.
    names = [name for name, size in sizes.items() if size >= 2**20]
    return f" ({', '.join(names)})" if names else ""


def _flags(changes: Mapping[str, Any]) -> str:
    return " ".join(f"--config.{k}={v}" for k, v in changes.items())


def _bound(times: Times) -> str:
    parts = dataclasses.asdict(times)
    rest = ", ".join(
        f"{_RESOURCES[name]} {seconds * 1e3:.3g}"
        for name, seconds in parts.items()
        if name != times.bound
    )
    return f"{_RESOURCES[times.bound]} ({rest})"


def _collectives(plan: Plan) -> str:
    kinds = plan.phases["train"].counts.collectives
    return ", ".join(f"{k} {v / 1e9:.3f}" for k, v in sorted(kinds.items()))


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1e3:.1f} ms"


_COLUMNS = (
    ("experiment", lambda p: p.case.name.removeprefix("configs/")),
    ("pod", lambda p: str(p.case.topology)),
    ("mesh", lambda p: "x".join(map(str, p.mesh.values()))),
    (
        "tables, exchange",
        lambda p: f"{p.case.config.mesh.tables}, {p.case.config.mesh.exchange}",
    ),
    (
        "users x items x interactions",
        lambda p: " x ".join(
            _count(n) for n in (p.case.users, p.case.items, p.case.interactions)
        ),
    ),
    ("batch", lambda p: _batch(p.case.config.train)),
    ("parameters", lambda p: _gib(p.held["parameters"])),
    ("optimiser", lambda p: _gib(p.held["optimiser"])),
    ("graphs", lambda p: _gib(p.held["graphs"])),
    ("positives", lambda p: _gib(p.held["positives"])),
    (
        "features",
        lambda p: _gib(p.held["features"] + p.held["counterfactuals"]),
    ),
    ("epoch's own", lambda p: _gib(p.passing["train"])),
    ("temporaries", lambda p: _gib(p.phases["train"].temporaries)),
    (
        "total of usable",
        lambda p: f"{_gib(p.total('train'))} of {_gib(p.limit)}",
    ),
    ("GFLOP", lambda p: f"{p.phases['train'].counts.flops / 1e9:.3g}"),
    ("GB moved", lambda p: f"{p.phases['train'].counts.bytes / 1e9:.3g}"),
    (
        "GB received",
        lambda p: (
            f"{sum(p.phases['train'].counts.collectives.values()) / 1e9:.3g}"
        ),
    ),
    ("step >=", lambda p: _time(p.times("train").least)),
    ("bound by", lambda p: _RESOURCES[p.times("train").bound]),
    ("epoch >=", lambda p: _time(p.epoch_seconds)),
    ("fits", lambda p: "yes" if p.fits else f"no: {_PROGRAMS[p.worst]}"),
)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _count(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g} {unit}"
    return str(number)


def _batch(train: Any) -> str:
    """Of a step, which may be several batches."""
    several = train.batches_per_step
    size = f"{train.batch_size:,}"
    return f"{several} x {size}" if several > 1 else size


def markdown(plans: Iterable[Plan]) -> str:
    """Plans side by side, a row each; bytes in GiB of one device."""
    rows = [[name for name, _ in _COLUMNS], ["---"] * len(_COLUMNS)]
    rows += [[cell(plan) for _, cell in _COLUMNS] for plan in plans]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page(plans: Sequence[Plan]) -> str:
    """The table of `markdown` as a page that says what it is."""
    compilers = sorted({plan.measured_by for plan in plans})
    made = "libtpu" if compilers == ["tpu"] else "the CPU's compiler"
    return f"""# Plans

What runs would need of one device, as `launch/plan.py` says: programs compiled
by {made}, from shapes alone. Memory is the compiler's, bytes and arithmetic are
counted in the compiled program, times are the least that a data sheet allows.
Each host also reads its parts of the train interactions for batches, 8 bytes
each; graphs and positives it lays out from files that are mapped.

{markdown(plans)}
"""


def as_json(plan: Plan, tried: Tried) -> dict[str, Any]:
    """Everything that is known of a plan."""
    case, phases = plan.case, {}
    for name, phase in plan.phases.items():
        phases[name] = {
            **dataclasses.asdict(phase),
            "largest": phase.largest[:20],
            "total": plan.total(name),
            "roofline_seconds": dataclasses.asdict(plan.times(name)),
        }
    return {
        "config": case.name,
        "config_values": flatten(case.config),
        "topology": str(case.topology),
        "chip": dataclasses.asdict(case.topology.chip),
        "users": case.users,
        "items": case.items,
        "interactions": case.interactions,
        "alternatives": case.alternatives,
        "skew": case.skew,
        "longest": case.longest,
        "features": dict(case.features),
        "mesh": plan.mesh,
        "compiler": plan.measured_by,
        "fits": plan.fits,
        "usable_bytes": plan.limit,
        "left_bytes": plan.left,
        "held_bytes": plan.held,
        "whole_bytes": plan.whole,
        "passing_bytes": plan.passing,
        "programs": phases,
        "steps_per_epoch": plan.steps,
        "blocks_per_evaluation": plan.blocks,
        "epoch_seconds": plan.epoch_seconds,
        "evaluation_seconds": plan.evaluation_seconds,
        "notes": plan.notes,
        "tried": [
            {
                "changes": changes,
                "fits": other.fits,
                "program": other.worst,
                "total_bytes": other.total(other.worst),
            }
            for changes, other in tried
        ],
    }
