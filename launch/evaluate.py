"""Ranks the whole catalogue with a trained run, and prints every measure.

    python launch/evaluate.py --workdir=DIR --split=test

The best step on valid is evaluated; nothing in the workdir changes.
"""

from absl import flags

from neggen_jax import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a run that was trained.")
_DATA = flags.DEFINE_string("data", None, "Where the dataset is now.")
_SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "What to rank.")


def main(argv: list[str]) -> None:
    """Calls the evaluator."""
    del argv
    from neggen_jax import balance, run

    opened, state, step = run.reopen(_WORKDIR.value, _DATA.value)
    values, _ = run.evaluate_state(opened, state, _SPLIT.value)
    if _SPLIT.value == "test":
        metric, _ = balance.metric(opened)
        without = balance.measure(opened, state)
        values |= balance.drops(values[metric], without)
    print(f"{opened.catalog.name}, {_SPLIT.value}, step {step}")
    for name, value in values.items():
        print(f"  {name:<24}{value:.6f}")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    command.run(main)
