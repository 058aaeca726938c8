"""Shows what was generated: a page of random items, and figures of all.

    python launch/inspect_records.py --data=DIR --set=attributes --items=20

The page is one file that any browser opens, `inspect.html` beside the
records unless --output names another. A set that is still being written can
be inspected, too.
"""

from absl import flags

from neggen_jax import command

_DATA = flags.DEFINE_string("data", None, "Dataset directory.")
_SET = flags.DEFINE_string("set", None, "Which set, if there are several.")
_ITEMS = flags.DEFINE_integer("items", 20, "Items to show.")
_SEED = flags.DEFINE_integer("seed", 0, "Another one shows other items.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write.")


def main(argv: list[str]) -> None:
    """Writes the page, and tells its figures."""
    del argv
    from neggen_jax.generation.inspection import inspect, summary

    path, figures = inspect.inspect(
        _DATA.value,
        _SET.value,
        items=_ITEMS.value,
        seed=_SEED.value,
        output=_OUTPUT.value,
    )
    print("\n".join(summary.lines(figures)))
    print(f"{path}")


if __name__ == "__main__":
    flags.mark_flag_as_required("data")
    command.run(main)
