"""Your own Flax encoder, trained here on NegGen's and GDNSM's negatives.

    python docs/examples/own_encoder.py --data=DIR

trains it without generated negatives, with NegGen's and with GDNSM's; without
--data, on a small catalogue made in place. The file is a config, too, by which
all commands train and read it as any other encoder:

    PYTHONPATH=docs/examples python launch/train.py \
        --config=docs/examples/own_encoder.py:gdnsm \
        --config.data.path=DIR --workdir=DIR
"""

import pathlib
import tempfile

import flax.linen as nn
import jax.numpy as jnp
import small_shop
from absl import flags

from neggen_jax import api, command

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


class Tower(api.Encoder):
    """Users by id; items by id, and by a small network of each modality.

    Attributes:
      hidden: units of the networks.
    """

    hidden: int = 128

    def needs(self):
        """The features of all modalities."""
        return api.Needs(features=True)

    @nn.compact
    def __call__(self, inputs):
        """Embeds every user and item."""
        users, free = self.user_table(), self.item_table()
        items = free
        for name, known in sorted(inputs.features.items()):
            inside = nn.relu(nn.Dense(self.hidden)(known.values))
            content = nn.Dense(self.dim, name=f"tower_{name}")(inside)
            items += jnp.where(known.present[:, None], content, 0)
        return api.Encoded(users, items, {"ego": (users, free)})


# --- ours: the config of an experiment, with this encoder in it
def get_config(argument="baseline"):
    """The experiment "baseline", "neggen" or "gdnsm"."""
    config = api.load_config(f"{CONFIGS / argument}.py:vbpr")
    with config.unlocked():
        config.encoder = {"name": "own_encoder:Tower", "dim": 64}
    return config


# --- end of ours


def main(argv):
    """Trains it three times, and prints what was found on test."""
    from neggen_jax.train import train_and_evaluate

    del argv
    data = small_shop.directory()
    runs = pathlib.Path(tempfile.mkdtemp(prefix="neggen-"))
    for name in ("baseline", "neggen", "gdnsm"):
        config = get_config(name)
        config.data.path, config.train.epochs = str(data), EPOCHS.value
        results = train_and_evaluate(config, runs / name)
        found = results["test"]["recall@20"]
        print(f"{name}: test Recall@20 {found:.4f}, in {runs / name}")


if __name__ == "__main__":
    EPOCHS = flags.DEFINE_integer("epochs", 40, "How long to train.")
    command.run(main)
