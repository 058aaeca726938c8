"""GDNSM: an encoder trained on negatives from a conditional diffusion model.

    python launch/train.py --config=configs/gdnsm.py:mci \
        --config.data.path=DIR --workdir=DIR

Everything of configs/baseline.py:ENCODER stays, the sampled negatives
included; generated ones come beside them, in a second BPR. Words of the
argument, all optional:

    mci | lightgcn | mf | vbpr | freedom | bm3 | mgcn | smore
                    the encoder (default mci)
    uniform | dns | mixgcf | ...
                    the sampled negatives, by any word of configs/baseline.py
                    for them
    bank            negatives are drawn for one pair in four of each batch,
                    kept for its user, and read for all: the cheap mode
    smoke           two epochs, all negatives let in at once

and one of the ablations:

    no_diffusion    uniform negatives, let in by the same ramp, as many as
                    with two modalities
    no_schedule     all are let in from the first step
    random          levels are let in in random order
    reversed        the hardest level is let in first
    unimodal        levels of one modality alone: 2M negatives in the end
    multimodal      only the level of all modalities together: M negatives

One device is enough. The metric to watch is valid/recall@20;
plots/negatives_generated.png tells whether hardness rises with the level.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from neggen_jax.config import load, words
from neggen_jax.errors import InputError

_BASELINE = str(pathlib.Path(__file__).with_name("baseline.py"))
_KNOWN = runpy.run_path(_BASELINE)

# Ablation -> what it changes in the source.
_ABLATIONS = {
    "full": {},
    "no_diffusion": {},
    "no_schedule": {"start": 0.0},
    "random": {"order": "random"},
    "reversed": {"order": "falling"},
    "unimodal": {"levels": "single"},
    "multimodal": {"levels": "joint"},
}


def get_config(argument: str = "") -> ConfigDict:
    encoder, ablation, sampler, options = words(
        argument,
        ("", *_KNOWN["ENCODERS"]),
        _ABLATIONS,
        # None, for what the encoder takes by itself.
        ("", *_KNOWN["SAMPLERS"]),
        options=("bank", "smoke"),
    )
    config = load(f"{_BASELINE}:{encoder or 'mci'},{sampler}")
    config.unlock()
    source = {
        "name": "diffusion",
        # M; with two modalities there are three levels.
        "samples": 2,
        "levels": "ladder",
        # The authors begin with the text. On catalogues that have pictures,
        # the image is what tells less of an item here, and is easier.
        "first": ("image",),
        "order": "rising",
        # S; epochs until the first M negatives are let in. The authors'
        # is 30; here an encoder is half done by then.
        "start": 4.0,
        "rate": 1.0,
        "unit": "epochs",
        "conditions": "features",
        "scales": {"text": 1.1, "image": 1.1},
        "timesteps": 25,
        "noise": "linear",
        "target": "x0",
        "criterion": "l2",
        "clip": 0.0,
        "hidden": 128,
        "drop": 0.05,
        # DDIM in 5 steps, for speed; all 25 with eta 1 are the authors'
        # sampling, cost four times as much, and vary more.
        "steps": 5,
        "eta": 0.0,
        "bank": 4 if "bank" in options else 0,
        **_ABLATIONS[ablation],
    }
    if "smoke" in options:
        config.train.epochs = 2
        source["start"] = 0.0
    if ablation == "no_diffusion":
        if "bank" in options:
            raise InputError(
                "There is nothing to keep in a bank without diffusion.",
                where=f"--config=FILE:{argument}",
            )
        shared = ("samples", "start", "rate", "unit")
        source = {
            "name": "ramped_uniform",
            "count": 3 * source["samples"],
            **{key: source[key] for key in shared},
        }
    config.negatives.generated = source
    config.losses.generated = {
        "name": "bpr",
        # w_neg. More speeds up the beginning and harms the end: at .1 valid
        # falls after some 50 epochs, at 1 as soon as negatives come.
        "weight": 0.05,
        "source": "generated",
    }
    # The generator has an optimiser of its own.
    if ablation != "no_diffusion":
        config.optimizer.groups.sources_generated = {"learning_rate": 1e-3}
    return config
