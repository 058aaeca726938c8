"""A run once more: the config that a workdir was made with.

    python launch/train.py --config=configs/rerun.py:WORKDIR --workdir=NEW

What stands in WORKDIR/run.json, with the defaults of today for keys that it
lacks. Reports of runs name this command. Values can be overridden as
everywhere, such as the seed: --config.seed=1.
"""

from ml_collections import ConfigDict

from neggen_jax import storage
from neggen_jax.config import base
from neggen_jax.errors import InputError
from neggen_jax.workdir import read_identity


def get_config(workdir: str = "") -> ConfigDict:
    if not workdir:
        raise InputError(
            "No run is named.",
            where="--config=configs/rerun.py",
            expected="--config=configs/rerun.py:WORKDIR",
        )
    known = read_identity(storage.path(workdir))["config"]
    config = base()
    for part in ("encoder", "negatives", "losses"):
        # Each run has its own, which replace the usual ones.
        config[part] = ConfigDict()
    # JSON knows no tuples.
    known["evaluate"]["cutoffs"] = tuple(known["evaluate"]["cutoffs"])
    config.update(ConfigDict(known))
    return config
