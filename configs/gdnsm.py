from ml_collections import ConfigDict
import pathlib
from neggen_jax.config import load, words


def get_config(argument: str = "") -> ConfigDict:
    encoder, options = words(
        argument,
        ("mci", "lightgcn", "mf", "vbpr", "freedom"),
        ("bank", "smoke"),
    )
    smoke = ",smoke" if "smoke" in options else ""
    here = pathlib.Path(__file__)
    config = load(f"{here.with_name('baseline.py')}:{encoder}{smoke}")
    with config.unlocked():
        config.negatives.generated = {
            "name": "diffusion",
            "samples": 2,
            "levels": "ladder",
            "order": "rising",
            "start": 10.0,
            "rate": 1.0,
            "unit": "epochs",
            "scales": {"text": 1.1, "image": 1.1},
            "timesteps": 25,
            "noise": "linear",
            "target": "x0",
            "criterion": "l2",
            "clip": 0.0,
            "hidden": 128,
            "drop": 0.05,
            "steps": 5,
            "eta": 0.0,
            "bank": 0,
        }
        config.losses.generated = {
            "name": "bpr",
            "weight": 0.1,
            "source": "generated",
        }
    return config
