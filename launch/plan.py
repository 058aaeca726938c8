"""Tells what a run would need on a TPU pod, without the pod and the data.

    pip install -r requirements-tpu.txt
    python launch/plan.py --config=configs/baseline.py:lightgcn \
        --topology=v5e:4x4 --users=1e7 --items=1e6 --interactions=2e8 \
        --config.mesh.model=16
    python launch/plan.py --plans=docs/plans.toml --table=docs/plans.md

Compiles the real programs for the pod's chips and prints memory, work and a
roofline of one device; --topology may be given several times. --plans reads
a list of [[plan]], each with what the flags give, and `set`, a list of
"key=value" for its config; it prints a Markdown table. Without
requirements-tpu.txt the CPU's compiler stands in.
"""

import json
import pathlib
import sys
import tomllib
from typing import Any

from absl import flags
from ml_collections import config_flags

from neggen_jax import command
from neggen_jax import config as configs
from neggen_jax.errors import InputError, nearest

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_TOPOLOGY = flags.DEFINE_multi_string(
    "topology", ["v5e:4x4"], "Chips, as KIND:AxB: v4, v5e, v5p or v6e."
)
_USERS = flags.DEFINE_float("users", 1e6, "How many.")
_ITEMS = flags.DEFINE_float("items", 1e5, "How many.")
_INTERACTIONS = flags.DEFINE_float("interactions", 2e7, "Of the train split.")
_FEATURES = flags.DEFINE_list("features", [], "MODALITY:WIDTH,...")
_ALTERNATIVES = flags.DEFINE_integer(
    "alternatives", 2, "Counterfactuals of an item and modality."
)
_SKEW = flags.DEFINE_float(
    "skew", 1.05, "Edges of the fullest device over those of the mean one."
)
_LONGEST = flags.DEFINE_integer(
    "longest", 4095, "Train interactions of the user who has most."
)
_SEARCH = flags.DEFINE_bool(
    "search", True, "Try what would make a plan fit that does not."
)
_PLANS = flags.DEFINE_string("plans", None, "TOML file with several plans.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_TABLE = flags.DEFINE_string("table", None, "Markdown file to write.")

_KEYS = ("config", "topology", "users", "items", "interactions")
_NUMBERS = ("alternatives", "skew", "longest")
_OPTIONAL = ("set", "features", *_NUMBERS)


def main(argv: list[str]) -> None:
    """Plans each case, and prints it."""
    del argv
    given = _from_file(_PLANS.value) if _PLANS.value else _from_flags()
    # JAX counts its devices when it is first asked.
    from neggen_jax import aot, roofline

    cases = [
        {**case, "topology": roofline.Topology.parse(case["topology"])}
        for case in given
    ]
    aot.environment(max(case["topology"].chips for case in cases))
    from neggen_jax import plan, plan_report

    plans, records = [], []
    for case in cases:
        made = plan.make(plan.Case(**case))
        search = _SEARCH.value and not made.fits
        tried = plan.remedies(made) if search else []
        print(plan_report.text(made, tried), end="\n\n", flush=True)
        # What was tried stands in the table as the last that was.
        plans += [made, *(other for _, other in tried[-1:])]
        records.append(plan_report.as_json(made, tried))
        if _OUTPUT.value:
            pathlib.Path(_OUTPUT.value).write_text(
                json.dumps(records, indent=1, default=list) + "\n"
            )
        # After each: some take minutes, and none is to be lost.
        if _TABLE.value:
            pathlib.Path(_TABLE.value).write_text(plan_report.page(plans))
    if len(plans) > 1:
        print(plan_report.markdown(plans))


def _from_flags() -> list[dict[str, Any]]:
    config = _CONFIG.value
    if config is None:
        raise InputError(
            "There is nothing to plan.",
            where="--config",
            fix="give --config=configs/baseline.py:lightgcn, or --plans=FILE",
        )
    spec = next(a for a in sys.argv if a.lstrip("-").startswith("config="))
    return [
        {
            "name": spec.partition("=")[2],
            "config": config,
            "topology": topology,
            "users": int(_USERS.value),
            "items": int(_ITEMS.value),
            "interactions": int(_INTERACTIONS.value),
            "features": _widths(_FEATURES.value, "--features"),
            "alternatives": _ALTERNATIVES.value,
            "skew": _SKEW.value,
            "longest": _LONGEST.value,
        }
        for topology in _TOPOLOGY.value
    ]


def _from_file(path: str) -> list[dict[str, Any]]:
    try:
        listed = tomllib.loads(pathlib.Path(path).read_text())["plan"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            "There are no plans to read.",
            where=f"--plans={path}",
            expected="a TOML file with one [[plan]] or several",
            found=f"{type(error).__name__}: {error}",
        ) from error
    return [
        _entry(entry, f"{path}, plan {n}") for n, entry in enumerate(listed)
    ]


def _entry(entry: dict[str, Any], where: str) -> dict[str, Any]:
    for key in set(entry) - {*_KEYS, *_OPTIONAL}:
        raise InputError(
            f"A plan has no {key!r}.",
            where=where,
            fix=nearest(key, (*_KEYS, *_OPTIONAL)),
        )
    for key in _KEYS:
        if key not in entry:
            raise InputError(f"A plan needs {key!r}.", where=where)
    config = configs.load(entry["config"])
    configs.override(config, entry.get("set", []))
    return {
        "name": entry["config"],
        "config": config,
        "topology": entry["topology"],
        "features": _widths(entry.get("features", []), where),
        **{key: int(entry[key]) for key in _KEYS[2:]},
        **{key: entry[key] for key in _NUMBERS if key in entry},
    }


def _widths(given: list[str], where: str) -> dict[str, int]:
    out = {}
    for part in given:
        name, _, width = part.partition(":")
        if not width.isdigit() or not int(width):
            raise InputError(
                "A modality has no width.",
                where=where,
                expected="MODALITY:WIDTH, as text:384",
                found=part,
            )
        out[name] = int(width)
    return out


if __name__ == "__main__":
    command.run(main)
