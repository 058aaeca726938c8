"""Encoders: from graphs and features to a vector for every user and item."""

from neggen_jax.models.bm3 import BM3
from neggen_jax.models.encoder import Encoder
from neggen_jax.models.freedom import FREEDOM
from neggen_jax.models.lightgcn import LightGCN
from neggen_jax.models.mci import MCI
from neggen_jax.models.mf import MF
from neggen_jax.models.mgcn import MGCN
from neggen_jax.models.smore import SMORE
from neggen_jax.models.vbpr import VBPR

ENCODERS: dict[str, type[Encoder]] = {
    "mf": MF,
    "lightgcn": LightGCN,
    "vbpr": VBPR,
    "freedom": FREEDOM,
    "mci": MCI,
    "bm3": BM3,
    "mgcn": MGCN,
    "smore": SMORE,
}
