"""The keys that every experiment has, and their defaults.

A file in `configs/` starts from `base()` and says only what is different.
"""

from __future__ import annotations

import ast
import itertools
import pathlib
import runpy
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from neggen_jax.errors import InputError, nearest, nearest_key


def base() -> ConfigDict:
    """Keys and defaults; a config file fills in encoder, losses, negatives."""
    config = ConfigDict()
    # Everything random in a run follows from this one number.
    config.seed = 0

    config.data = ConfigDict()
    # A dataset directory, as launch/prepare.py writes it.
    config.data.path = ""
    # Who forms batches: "tf.data", "numpy" in a thread, or "auto": tf.data if
    # they bring vectors along.
    config.data.pipeline = "auto"
    # How features and counterfactuals lie on the devices: in "float32", or in
    # "bfloat16", half the memory; sums are of float32 in both. Rankings read
    # the same. If train.dtype is bfloat16, so is this.
    config.data.feature_dtype = "float32"
    # Age, in the unit of the dataset's timestamps, at which an interaction is
    # drawn half as often as the newest one; 0 draws all equally often.
    config.data.half_life = 0.0
    config.data.counterfactuals = ConfigDict()
    # A set that launch/generate.py has put into the dataset directory.
    config.data.counterfactuals.name = ""
    # How it reaches a step: as "tables" on the devices, or in "batches".
    config.data.counterfactuals.feed = "tables"
    # Gives each item those of another one, to see what they are worth.
    config.data.counterfactuals.shuffled = False

    # What embeds users and items; each part has keys of its own.
    config.encoder = ConfigDict({"name": "lightgcn", "dim": 64})
    # Where negatives come from: sources by the names that losses use.
    config.negatives = ConfigDict({"sampled": {"name": "uniform", "count": 1}})
    # What is minimised: losses by name, each with a weight.
    config.losses = ConfigDict(
        {"bpr": {"name": "bpr", "weight": 1.0, "source": "sampled"}}
    )

    config.optimizer = ConfigDict()
    # Of Adam; the peak, where a schedule changes it.
    config.optimizer.learning_rate = 1e-3
    # "constant", "cosine" or "exponential".
    config.optimizer.schedule = "constant"
    # Steps in which the learning rate rises from 0, before the schedule.
    config.optimizer.warmup_steps = 0
    # Where cosine and exponential end, as a factor on the learning rate.
    config.optimizer.final_scale = 0.0
    # AdamW's: what is taken off parameters, times the learning rate.
    config.optimizer.weight_decay = 0.0
    # Largest global norm of a gradient; 0 does not clip.
    config.optimizer.clip_norm = 0.0
    # Adam's decay of the mean of gradients.
    config.optimizer.beta1 = 0.9
    # Adam's decay of the mean of their squares.
    config.optimizer.beta2 = 0.999
    # Adam's, added to the root of that mean in the denominator.
    config.optimizer.epsilon = 1e-8
    # Leaves rows of tables (of any parameter; elements of vectors) alone,
    # moments too, in steps in which their gradient is 0: less work where a
    # batch reads a small part of a table, as with MF or VBPR, and another
    # optimiser.
    config.optimizer.lazy = False
    # Parameters that want other values: beginning of a path -> keys.
    config.optimizer.groups = ConfigDict()

    config.train = ConfigDict()
    # Positive pairs in one batch, over all devices.
    config.train.batch_size = 2048
    # Batches that share one propagation, and one step of the optimiser on
    # the mean of their gradients. More than 1 is for graphs that are too
    # large to propagate for every batch; steps are fewer by as much, and
    # want a higher learning rate (for 16, some 2 to 4 times).
    config.train.batches_per_step = 1
    # At most; patience may end a run before.
    config.train.epochs = 300
    # Workdir of a run whose best step this one begins with, on the same
    # dataset or on an earlier one; see warm_start.py. "": anew.
    config.train.start_from = ""
    # Most steps that are stacked for one dispatch to the devices, each with
    # all its batches. Told to stop, a run ends the dispatches that are under
    # way: two, or three over processes.
    config.train.steps_per_dispatch = 16
    # Epochs between two evaluations on valid.
    config.train.eval_every = 1
    # Evaluations without a better one after which training stops; 0: never.
    config.train.patience = 20
    # The metric on valid that chooses the best step.
    config.train.metric = "recall@20"
    # "float32", or "bfloat16" for activations beside float32 parameters.
    config.train.dtype = "float32"
    # Decay of a running average of the parameters, which is then what is
    # evaluated; 0 keeps none.
    config.train.ema = 0.0
    # Epochs between two checkpoints.
    config.train.checkpoint_every = 1
    # Least seconds after one before there is another, but for the last: the
    # best step of the meantime is held on the devices, beside what trains, and
    # what a kill loses is trained again.
    config.train.checkpoint_seconds = 10.0
    # How many of the latest are kept beside the best.
    config.train.keep = 2

    config.evaluate = ConfigDict()
    # Lengths of the lists that metrics are of.
    config.evaluate.cutoffs = (5, 10, 20, 50)
    # Users that are ranked in one dispatch; without influence on results.
    config.evaluate.block_size = 4096
    # Below 1, epochs are evaluated on valid by lists that TPUs choose
    # approximately, and faster: this is the share of an exact list that is to
    # be in one; what it is gets logged. Results are always of exact lists.
    config.evaluate.recall_target = 1.0
    # The attribute whose entropy tells how varied lists are; "" takes what
    # usually says an item's kind, if the items' records have it.
    config.evaluate.category = ""
    # Whether a finished run gets a report: report.html and report.md.
    config.evaluate.report = True

    config.mesh = ConfigDict()
    # Devices that share a batch; -1 takes all that model leaves.
    config.mesh.data = -1
    # Devices that share the items while users are ranked.
    config.mesh.model = 1
    # Over which the rows of tables are spread: those of "model", or "all".
    config.mesh.tables = "model"
    # How propagation over several shards of a table comes by the others:
    # "gather" holds the whole table on each device while it multiplies;
    # "ring" passes the shards round, in memory that does not grow with it;
    # "pull" sends each device the items that its users have, and sums back.
    config.mesh.exchange = "gather"
    return config


# What may differ between the run that made a workdir and one that resumes
# it: nothing here changes the numbers up to the step that was reached.
RESUMABLE = frozenset(
    {
        "data.path",
        "data.pipeline",
        "data.counterfactuals.feed",
        "train.epochs",
        "train.patience",
        "train.keep",
        "train.checkpoint_seconds",
        "evaluate.block_size",
        "evaluate.category",
        "evaluate.report",
        "mesh.data",
        "mesh.model",
        "mesh.tables",
        "mesh.exchange",
    }
)


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> values."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, ConfigDict | dict):
            out |= flatten(value, f"{name}.")
        else:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def written(then: dict[str, Any], now: Iterable[str]) -> dict[str, Any]:
    """The dotted keys of a config that was written, perhaps a while ago.

    What an earlier version did as it did, a key added since says at its
    default.

    Args:
      then: the config.
      now: dotted keys that configs have.
    """
    usual = flatten(base())
    return {key: usual[key] for key in now if key in usual} | flatten(then)


def words(
    argument: str, *groups: Iterable[str], options: Iterable[str] = ()
) -> tuple[Any, ...]:
    """Reads a config file's argument: words with commas between them.

    Args:
      argument: such as "mci,smoke".
      *groups: of each, one word is chosen; the first, if none is given. It
        may be "", which nobody gives.
      options: words that may stand there or not.

    Returns:
      The choice of each group, and the options as a frozenset.

    Raises:
      InputError: for an unknown word, and for two choices of one group.
    """
    choices = [tuple(group) for group in groups]
    known = [*filter(None, itertools.chain(*choices)), *options]
    given = [word for word in argument.split(",") if word]
    for word in given:
        if word not in known:
            raise InputError(
                f"Unknown word {word!r} in the argument of the config.",
                where=f"--config=FILE:{argument}",
                fix=nearest(word, known),
            )
    chosen = []
    for group in choices:
        here = [word for word in given if word in group]
        if len(here) > 1:
            raise InputError(
                "The argument of the config makes two choices at once.",
                where=f"--config=FILE:{argument}",
                expected=f"one of {', '.join(filter(None, group))}",
                found=", ".join(here),
            )
        chosen.append((here or group)[0])
    return *chosen, frozenset(options).intersection(given)


def load(spec: str) -> ConfigDict:
    """Loads a config file by path, as `--config` does.

    Args:
      spec: "FILE.py", or "FILE.py:ARGUMENT".

    Raises:
      InputError: if there is no such file, or it defines no `get_config`.
    """
    file, _, argument = spec.partition(":")
    if not pathlib.Path(file).is_file():
        raise InputError("There is no such config file.", where=file)
    try:
        get_config = runpy.run_path(file)["get_config"]
        config = get_config(*([argument] if argument else []))
        return config.lock()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "The config file does not give a config.",
            where=file,
            expected="a function get_config that returns one",
            found=f"{type(error).__name__}: {error}",
        ) from error


def override(config: ConfigDict, assignments: Iterable[str]) -> None:
    """Sets values, each given as "key.of.it=value" in Python's notation.

    Raises:
      InputError: for an unknown key, and for a value of another type.
    """
    known = flatten(config)
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        if key not in known:
            raise InputError(
                f"Unknown config key {key!r}.",
                where=assignment,
                fix=nearest_key(key, known),
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as error:
            raise InputError(
                f"Bad value of {key!r}.",
                where=assignment,
                expected=type(known[key]).__name__,
                found=text,
            ) from error
