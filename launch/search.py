"""Searches hyper-parameters on valid, with Optuna.

    python launch/search.py --search=docs/search.toml --data=data/hm_week \
        --output=runs/search --trials=30 --dry-run
    python launch/search.py --search=docs/search.toml --data=data/hm_week \
        --output=runs/search --trials=30

Each trial is a run of launch/train.py in a process and a workdir of its own
under --output; whatever was interrupted, kill -9 included, the same command
goes on with. At the end the best few are trained again over seeds, if the
file names some, and test is read of what valid has chosen. docs/search.md
tells more; --dry-run tells what would be done, and ends.
"""

import functools
import pathlib
import sys

from absl import flags

from neggen_jax import command

_SEARCH = flags.DEFINE_string(
    "search", None, "TOML file that says what to search.", required=True
)
_DATA = flags.DEFINE_string(
    "data", None, "Dataset directory of all runs.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory of the study and the workdirs.", required=True
)
_TRIALS = flags.DEFINE_integer(
    "trials", 30, "How many, those that were made before included.", 1
)
_DRY = flags.DEFINE_bool("dry-run", False, "Tell what would be done, and end.")


def main(argv: list[str]) -> None:
    """Calls the search."""
    del argv
    from neggen_jax import trials
    from neggen_jax.search import finals, page, spec, study

    search, data = spec.read(_SEARCH.value), _DATA.value
    output = pathlib.Path(_OUTPUT.value)
    trainer = pathlib.Path(__file__).with_name("train.py")
    if _DRY.value:
        tried = study.peek(search, data, output)
        total = _TRIALS.value
        print(page.plan(search, data, output, trainer, total, tried))
        return
    say = functools.partial(print, flush=True)
    study.available()
    with trials.claim(output):
        spec.claim(search, data, output)
        found = study.Study(search, output)
        wrong = study.run(found, data, output, trainer, _TRIALS.value, say)
        again = finals.make(search, data, output, found.tried)
        if study.done(found, _TRIALS.value):
            wrong += finals.run(again, trainer, output, say)
        for line in wrong:
            print(f"not finished: {line}", file=sys.stderr)
        if study.best(found.tried) or not wrong:
            print(page.write(search, data, output, found, again))
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
