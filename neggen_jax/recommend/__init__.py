"""Recommendations of a finished run: lists, their reasons, and files of them.

Stands behind training: reads a workdir (`trained.py`) and who asks
(`asked.py`), folds in who is new (`folding.py`), ranks (`lists.py`), says why
(`reasons.py`) and writes (`output.py`). `export.py` hands the vectors and the
scorer to systems that know nothing of this package.
"""

from neggen_jax.recommend.lists import Lister
from neggen_jax.recommend.recommend import recommend
from neggen_jax.recommend.trained import Trained, load, with_new

__all__ = ["Lister", "Trained", "load", "recommend", "with_new"]
