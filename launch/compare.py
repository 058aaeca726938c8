"""Compares methods over several seeds, with paired significance.

    python launch/compare.py \
        --runs='mci=runs/mci-*' --runs='gdnsm=runs/gdnsm-*'

Each method is a name and a pattern of workdirs, one for each seed; the first
is what the others are compared with. Prints a Markdown table. --metrics takes
any of results.json: those that single users have are tested over users and
over seeds, the others over seeds.
"""

from absl import flags

from neggen_jax import command
from neggen_jax.errors import InputError

_RUNS = flags.DEFINE_multi_string(
    "runs", None, "NAME=PATTERN of the workdirs of one method.", required=True
)
_METRICS = flags.DEFINE_list(
    "metrics", ["recall@20", "ndcg@20"], "Columns of the table."
)


def main(argv: list[str]) -> None:
    """Calls the comparison."""
    del argv
    from neggen_jax import significance, storage

    groups = []
    for entry in _RUNS.value:
        name, _, pattern = entry.partition("=")
        if not pattern:
            raise InputError(
                "A method has no name, or no runs.",
                where=f"--runs={entry}",
                expected="--runs=NAME=PATTERN",
            )
        workdirs = storage.directories(pattern)
        groups.append(significance.read(name, workdirs, _METRICS.value))
    print(significance.markdown(significance.rows(groups)))
    for caveat in significance.caveats(groups):
        print(f"note: {caveat}")


if __name__ == "__main__":
    command.run(main)
