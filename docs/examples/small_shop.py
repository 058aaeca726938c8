"""The dataset of the examples: yours, or a small synthetic one."""

import pathlib
import tempfile

from absl import flags

from neggen_jax.data.prepare import prepare
from neggen_jax.generation.sets.generate import generate

DATA = flags.DEFINE_string(
    "data", None, "Dataset directory with counterfactuals; none: a bazaar."
)


def directory() -> pathlib.Path:
    """The dataset directory that --data names, or a new one."""
    if DATA.value:
        return pathlib.Path(DATA.value)
    path = pathlib.Path(tempfile.mkdtemp(prefix="neggen-")) / "data"
    prepare("bazaar", None, path, num_users=800, num_items=400)
    generate(path, image_attributes=["colour", "pattern", "cut", "backdrop"])
    return path
