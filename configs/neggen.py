"""NegGen: an encoder that learns from its items' counterfactuals.

    python launch/generate.py --data=DIR --backend=attributes
    python launch/train.py --config=configs/neggen.py:lightgcn \
        --config.data.path=DIR --workdir=DIR

Everything of configs/baseline.py:ENCODER stays, the sampled negatives
included; counterfactuals come beside them. Words of the argument, all
optional:

    lightgcn | mf | vbpr | freedom | mci | bm3 | mgcn | smore
                    the encoder (default lightgcn)
    uniform | dns | mixgcf | ...
                    the sampled negatives, by any word of configs/baseline.py
                    for them
    gdnsm           with the diffusion negatives of configs/gdnsm.py
    conditioned     the same, drawn under the conditions of counterfactuals
    smoke           two epochs

and one of the ablations:

    no_effect       lambda = 0: ranked by the encoder alone
    no_alignment    alpha = 0
    no_negatives    effects of items as they are; counterfactuals are not read
    text | image    counterfactuals of this modality alone
    random          the set "random", whose attributes and values are random
    shuffled        each item has the counterfactuals of another
    published       the paper's effect, anchor and weights; losses bounded,
                    and on one scale, all the same

To start from an encoder that has been trained, as the authors do, give its
workdir as --config.train.start_from=DIR. One device is enough. The metric to
watch is valid/recall@20.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from neggen_jax.config import load, words

_HERE = pathlib.Path(__file__).parent
_KNOWN = runpy.run_path(str(_HERE / "baseline.py"))

# Ablation -> what it changes in the source.
_ABLATIONS = {
    "full": {},
    "no_effect": {"strength": 0.0},
    "no_alignment": {},
    "no_negatives": {"contrast": False},
    "text": {"modalities": ("text",)},
    "image": {"modalities": ("image",)},
    "random": {},
    "shuffled": {},
    "published": {"effect": "difference", "length": "free"},
}


def get_config(argument: str = "") -> ConfigDict:
    encoder, ablation, sampler, together, options = words(
        argument,
        _KNOWN["ENCODERS"],
        _ABLATIONS,
        # None, for what the encoder takes by itself.
        ("", *_KNOWN["SAMPLERS"]),
        ("alone", "gdnsm", "conditioned"),
        options=("smoke",),
    )
    base = "baseline" if together == "alone" else "gdnsm"
    config = load(f"{_HERE / base}.py:{encoder},{sampler}")
    config.unlock()
    wanted = config.data.counterfactuals
    wanted.name = "random" if ablation == "random" else "attributes"
    wanted.shuffled = ablation == "shuffled"
    published = ablation == "published"
    config.negatives.counterfactual = {
        "name": "counterfactual",
        # lambda; the authors'.
        "strength": 0.4,
        "score": "symmetric",
        "modalities": (),
        "heads": 8,
        # The paper's is the difference, which is told from c~ by its kind.
        "effect": "content",
        "length": "embedding",
        "contrast": True,
        **_ABLATIONS[ablation],
    }
    # L_rec, and w_cf.
    config.losses.counterfactual = {
        "name": "bpr",
        "weight": 1.0 if published else 0.01,
        "source": "counterfactual",
    }
    # L_align, alpha and tau. The authors' alpha and tau are 1e-2 and .2.
    if ablation != "no_alignment":
        config.losses.alignment = {
            "name": "alignment",
            "weight": 1e-2 if published else 1.0,
            "source": "counterfactual",
            "temperature": 0.2,
            "anchor": "item" if published else "user",
            "others": 0 if published else 512,
        }
    if not published:
        # Effects learn slowly at LightGCN's 1e-3.
        config.optimizer.learning_rate = 4e-3
    if together == "conditioned":
        config.negatives.generated.conditions = "counterfactuals"
    if "smoke" in options:
        config.train.epochs = 2
    return config
