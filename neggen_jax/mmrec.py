"""Times the MMRec toolbox (PyTorch) on the data that `benchmark` times us on.

MMRec is brought by who measures; nothing of it is here. It runs from a copy,
in its own Python, with its own settings but those that say what is compared.
What its log says of each epoch and each evaluation on valid is taken.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from neggen_jax.catalog import Catalog
from neggen_jax.data.export import write_mmrec
from neggen_jax.errors import InputError, nearest

# Our experiment -> its model, and single values for what it would search
# over. MGCN is the nearest that it has to MCI, too.
MODELS: dict[str, tuple[str, dict[str, list[float]]]] = {
    "configs/baseline.py:mf": ("BPR", {"reg_weight": [1e-2]}),
    "configs/baseline.py:lightgcn": (
        "LightGCN",
        {"n_layers": [2], "reg_weight": [1e-4]},
    ),
    "configs/baseline.py:vbpr": ("VBPR", {"reg_weight": [1e-3]}),
    "configs/baseline.py:freedom": (
        "FREEDOM",
        {"dropout": [0.8], "reg_weight": [1e-3]},
    ),
    "configs/baseline.py:mci": ("MGCN", {"cl_loss": [1e-2]}),
    "configs/baseline.py:bm3": (
        "BM3",
        {"n_layers": [1], "dropout": [0.3], "reg_weight": [1e-2]},
    ),
    "configs/baseline.py:mgcn": ("MGCN", {"cl_loss": [1e-2]}),
    "configs/baseline.py:smore": (
        "SMORE",
        {
            "n_ui_layers": [3],
            "image_knn_k": [10],
            "text_knn_k": [10],
            "reg_weight": [1e-4],
            "dropout_rate": [0.0],
        },
    ),
}

# It imports torchvision, for pictures that nobody reads here, and for one sum
# torch_scatter, calls types by names that NumPy has dropped, and some of its
# models ask for a GPU by name.
_RUN = """
import importlib.util, json, resource, sys, types
import numpy, torch
numpy.float, numpy.int = float, int
if importlib.util.find_spec("torchvision") is None:
    for name in ("", ".transforms", ".transforms.functional"):
        module = types.ModuleType("torchvision" + name)
        module.__getattr__ = lambda _: None
        sys.modules[module.__name__] = module
    sys.modules["torchvision"].transforms = types.SimpleNamespace()
if importlib.util.find_spec("torch_scatter") is None:
    module = sys.modules["torch_scatter"] = types.ModuleType("torch_scatter")
    module.scatter_add = lambda values, index, dim, dim_size: torch.zeros(
        dim_size, dtype=values.dtype
    ).scatter_add(dim, index, values)
if not torch.cuda.is_available():
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, *_, **__: self
model, config = json.loads(sys.argv.pop())
sys.path.insert(0, "")
from utils.quick_start import quick_start
quick_start(
    model=model, dataset=config["dataset"], config_dict=config, save_model=False
)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("threads", torch.get_num_threads())
print("peak", peak)
"""


def measure(
    spec: str, catalog: Catalog, epochs: int, toolbox: Path, python: str
) -> dict[str, Any]:
    """Times one model, in a process of its own.

    Args:
      spec: our experiment, a key of `MODELS`.
      catalog: with "text" and "image".
      epochs: to train; the first is left out of the medians.
      toolbox: a clone of MMRec.
      python: that has what MMRec needs.

    Returns:
      "seconds_per_epoch" and "evaluation_seconds", medians; the numbers that
      they are of; "valid", pairs of an epoch and recall@20 after it;
      "peak_memory_mib" and "threads".

    Raises:
      InputError: for an experiment that it has no model for, a toolbox that
        is none, and if it fails.
    """
    if spec not in MODELS:
        raise InputError(
            "MMRec has no model for an experiment.",
            where=f"--experiment={spec}",
            fix=nearest(spec, MODELS),
        )
    source = toolbox / "src"
    if not (source / "utils" / "quick_start.py").is_file():
        raise InputError(
            "There is no MMRec.",
            where=toolbox,
            expected="a clone of github.com/enoche/MMRec",
        )
    model, single = MODELS[spec]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        shutil.copytree(source, here / "src")
        write_mmrec(catalog, here / "data" / catalog.name)
        config = {
            "dataset": catalog.name,
            "data_path": f"{here}/data/",
            "inter_file_name": f"{catalog.name}.inter",
            "text_feature_file": "text_feat.npy",
            "vision_feature_file": "image_feat.npy",
            "USER_ID_FIELD": "userID",
            "ITEM_ID_FIELD": "itemID",
            "field_separator": "\t",
            "epochs": epochs,
            "stopping_step": epochs,
            "valid_metric": "Recall@20",
            "seed": [0],
            **single,
        }
        done = subprocess.run(
            [python, "-c", _RUN, json.dumps([model, config])],
            cwd=here / "src",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        if done.returncode:
            raise ValueError(f"it ended with status {done.returncode}")
        return read_log(done.stdout)
    except ValueError as error:
        raise InputError(
            f"MMRec did not train {model}: {error}.",
            where=toolbox,
            found="\n".join(done.stdout.splitlines()[-8:]),
        ) from error


def read_log(text: str) -> dict[str, Any]:
    """Timings from what MMRec prints; see `measure`.

    Raises:
      ValueError: if there are fewer than two epochs in it.
    """
    trained, evaluated = (
        [
            float(x)
            for x in re.findall(rf"epoch \d+ {what} \[time: (\S+)s", text)
        ]
        for what in ("training", "evaluating")
    )
    if len(trained) < 2 or len(evaluated) < 2:
        raise ValueError("there are fewer than two epochs in its log")
    scores = re.findall(r"epoch \d+ evaluating .*valid_score: ([\d.]+)", text)
    peak = re.search(r"^peak (\d+)", text, re.MULTILINE)
    threads = re.search(r"^threads (\d+)", text, re.MULTILINE)
    return {
        "seconds_per_epoch": statistics.median(trained[1:]),
        "evaluation_seconds": statistics.median(evaluated[1:]),
        "valid": [[n, float(x)] for n, x in enumerate(scores, 1)],
        "epochs": trained,
        "evaluations": evaluated,
        "peak_memory_mib": int(peak[1]) / 1024 if peak else None,
        "threads": int(threads[1]) if threads else None,
    }
