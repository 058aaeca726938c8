"""Writes the report of a run: an HTML page, and the same as Markdown.

    python launch/report.py --workdir=DIR
    python launch/report.py --workdir=DIR --beside=OTHER --output=FILE.html

A finished run has one already (--config.evaluate.report=False leaves it out);
with --beside two runs on one dataset are compared.
"""

from absl import flags

from neggen_jax import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a run that has finished.")
_BESIDE = flags.DEFINE_string("beside", None, "Workdir of another one.")
_OUTPUT = flags.DEFINE_string("output", None, "The page; FILE.html.")
_DATA = flags.DEFINE_string("data", None, "Where the dataset is now.")
_SEED = flags.DEFINE_integer("seed", 0, "Another one shows other users.")


def main(argv: list[str]) -> None:
    """Calls the report."""
    del argv
    from neggen_jax.reporting.write import write

    for path in write(
        _WORKDIR.value,
        _BESIDE.value,
        _OUTPUT.value,
        data=_DATA.value,
        seed=_SEED.value,
    ):
        print(path)


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    command.run(main)
