"""The keys that every experiment has, and their defaults.

A file in `configs/` starts from `base()` and says only what is different.
"""

from __future__ import annotations

import pathlib
import runpy
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from neggen_jax.errors import InputError, nearest


def base() -> ConfigDict:
    """Keys and defaults; a config file fills in encoder, losses, negatives."""
    config = ConfigDict()
    # Everything random in a run follows from this one number.
    config.seed = 0

    config.data = ConfigDict()
    # A dataset directory, as launch/prepare.py writes it.
    config.data.path = ""
    # "tf.data", or "numpy" where TensorFlow is not installed.
    config.data.pipeline = "tf.data"

    config.encoder = ConfigDict({"name": "lightgcn", "dim": 64})
    config.negatives = ConfigDict({"sampled": {"name": "uniform", "count": 1}})
    config.losses = ConfigDict(
        {"bpr": {"name": "bpr", "weight": 1.0, "source": "sampled"}}
    )

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-3
    # "constant", "cosine" or "exponential".
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    # Where cosine and exponential end, as a factor on the learning rate.
    config.optimizer.final_scale = 0.0
    config.optimizer.weight_decay = 0.0
    # Largest global norm of a gradient; 0 does not clip.
    config.optimizer.clip_norm = 0.0
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-8
    # Parameters that want other values: beginning of a path -> keys.
    config.optimizer.groups = ConfigDict()

    config.train = ConfigDict()
    # Positive pairs in one step, over all devices.
    config.train.batch_size = 2048
    config.train.epochs = 300
    # Most steps that are stacked for one dispatch to the devices.
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
    # Epochs between two checkpoints, and how many of the latest are kept
    # beside the best.
    config.train.checkpoint_every = 1
    config.train.keep = 2

    config.evaluate = ConfigDict()
    config.evaluate.cutoffs = (5, 10, 20, 50)
    config.evaluate.block_size = 1024

    # Devices as a grid; data=-1 takes all that model leaves.
    config.mesh = ConfigDict({"data": -1, "model": 1})
    return config


# What may differ between the run that made a workdir and one that resumes
# it: nothing here changes the numbers up to the step that was reached.
RESUMABLE = frozenset(
    {
        "data.path",
        "data.pipeline",
        "train.epochs",
        "train.patience",
        "train.keep",
        "evaluate.block_size",
        "mesh.data",
        "mesh.model",
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


def words(
    argument: str, choices: Iterable[str], options: Iterable[str]
) -> tuple[str, frozenset[str]]:
    """Reads a config file's argument: a choice, then options, with commas.

    Returns:
      The choice (the first known, if none is given) and the options.

    Raises:
      InputError: for a word that is neither, and for two choices.
    """
    choices, options = tuple(choices), frozenset(options)
    given = [word for word in argument.split(",") if word]
    for word in given:
        if word not in choices and word not in options:
            raise InputError(
                f"Unknown word {word!r} in the argument of the config.",
                where=f"--config=FILE:{argument}",
                fix=nearest(word, [*choices, *options]),
            )
    chosen = [word for word in given if word in choices]
    if len(chosen) > 1:
        raise InputError(
            "The argument of the config makes two choices at once.",
            where=f"--config=FILE:{argument}",
            expected=f"one of {', '.join(choices)}",
            found=", ".join(chosen),
        )
    return (chosen or choices)[0], options.intersection(given)


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
