"""Where a pair's negatives come from."""

from neggen_jax.negatives.catalogue import Popularity, Uniform
from neggen_jax.negatives.counterfactual import Counterfactual
from neggen_jax.negatives.difficulty import RampedUniform
from neggen_jax.negatives.diffusion import Diffusion
from neggen_jax.negatives.disentangled import DENS
from neggen_jax.negatives.hard import AHNS, DNS, TopOfDNS
from neggen_jax.negatives.in_batch import InBatch, WholeBatch
from neggen_jax.negatives.mixed import MixGCF
from neggen_jax.negatives.source import Source

SOURCES: dict[str, type[Source]] = {
    "uniform": Uniform,
    "popularity": Popularity,
    "ramped_uniform": RampedUniform,
    "counterfactual": Counterfactual,
    "diffusion": Diffusion,
    "dns": DNS,
    "dns_mn": TopOfDNS,
    "ahns": AHNS,
    "mixgcf": MixGCF,
    "dens": DENS,
    "in_batch": InBatch,
    "whole_batch": WholeBatch,
}
