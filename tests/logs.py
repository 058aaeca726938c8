"""What the tests of reports share: workdirs as a run leaves them."""

import json

import numpy as np
from PIL import Image

RECALLS = [0.05, 0.12, 0.16, 0.15]


def make_run(parent, name="neggen", scale=1.0, **changes):
    """A workdir as `train.py` leaves it: four epochs of ten steps."""
    workdir = parent / name
    workdir.mkdir(parents=True)
    lines = []
    for epoch, recall in enumerate(RECALLS, 1):
        step = 10 * epoch
        line = {"step": step, "epoch": float(epoch)}
        lines += [{**line, "train/loss": 1 / step, "train/bpr": 0.5 / step}]
        valid = {"valid/recall@20": scale * recall}
        lines += [{**line, **valid, "valid/ndcg@20": scale * recall / 2}]
    write_log(workdir, lines)
    results = {
        "dataset": "bazaar",
        "config": {
            "encoder": {"name": "lightgcn", "dim": 64},
            "negatives": {"sampled": {"name": "uniform", "count": 1}},
        },
        "step": 30,
        "valid": {"recall@20": scale * 0.16},
        "test": {
            "recall@10": scale * 0.1,
            "recall@20": scale * 0.15,
            "ndcg@10": scale * 0.05,
            "ndcg@20": scale * 0.07,
            "coverage@20": 0.5,
            "gini@20": scale * 0.4,
        },
        "deciles": {
            "recall@20": [None, *np.linspace(0, 0.3, 9).tolist()],
            "heldout": [0, *range(10, 19)],
        },
        "timing": {"seconds_per_epoch": 1.5},
    } | changes
    (workdir / "results.json").write_text(json.dumps(results))
    return workdir


def write_log(workdir, lines):
    """Writes `metrics.jsonl`; a line is a dict, or text as it is."""
    texts = [x if isinstance(x, str) else json.dumps(x) for x in lines]
    (workdir / "metrics.jsonl").write_text("\n".join(texts))


def ink(path):
    """Share of pixels that are not white."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return (pixels < 250).mean()
