"""Compares samplers of negatives on several encoders, over several seeds.

    python launch/sweep.py --sweep=docs/comparison.toml --data=data/hm_week \
        --output=runs/comparison --dry-run
    python launch/sweep.py --sweep=docs/comparison.toml --data=data/hm_week \
        --output=runs/comparison --table=docs/comparison.md

Trains what is not finished yet, each run in a process and a workdir of its
own under --output, and prints and writes one Markdown table with tests
against the first sampler, and a figure. Given again, it goes on; a run that
fails is named, and stops no other. --dry-run tells what would be run, and ends.
"""

import functools
import pathlib
import sys

from absl import flags

from neggen_jax import command

_SWEEP = flags.DEFINE_string(
    "sweep", None, "TOML file that says what to compare.", required=True
)
_DATA = flags.DEFINE_string(
    "data", None, "Dataset directory of all runs.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory of the workdirs.", required=True
)
_TABLE = flags.DEFINE_string(
    "table",
    None,
    "Markdown file to write, and a PNG beside it; comparison.md of --output if "
    "none.",
)
_DRY = flags.DEFINE_bool("dry-run", False, "Tell what would be run, and end.")


def main(argv: list[str]) -> None:
    """Calls the sweep."""
    del argv
    from neggen_jax import plots, sweep, trials

    wanted = sweep.read(_SWEEP.value)
    output = pathlib.Path(_OUTPUT.value)
    trainer = pathlib.Path(__file__).with_name("train.py")
    made = sweep.make(wanted, _DATA.value, output)
    if _DRY.value:
        print(trials.plan(made, trainer))
        return
    say = functools.partial(print, flush=True)
    with trials.claim(output):
        wrong = trials.run(made, trainer, output, say)
    finished = sweep.gather(wanted, made)
    text = sweep.page(wanted, finished)
    path = pathlib.Path(_TABLE.value or output / "comparison.md")
    path.write_text(text)
    plots.save(sweep.draw(wanted, finished), path.with_suffix(".png"))
    print(text)
    for line in wrong:
        print(f"not finished: {line}", file=sys.stderr)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
