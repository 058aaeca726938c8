"""Encoders in dense float64 NumPy, written from the papers.

Each takes an encoder's parameters and the catalogue, and gives users, items
and the views beside "ego". Their keywords are those of `KEYWORDS`, other than
the defaults, so that no default can stand in for them.
"""

import dense
import numpy as np
from scipy import special

KEYWORDS = {
    "mf": {},
    "lightgcn": {"layers": 3},
    "vbpr": {},
    "freedom": {
        "layers": 1,
        "item_layers": 2,
        "neighbours": 5,
        "graph_weights": {"text": 3.0, "image": 1.0},
        "train_features": True,
    },
    "mci": {
        "layers": 1,
        "item_layers": 2,
        "neighbours": 6,
        "modality_weights": {"text": 0.6, "image": 0.2},
        "side_scale": 0.5,
    },
    "bm3": {"layers": 2},
    "mgcn": {"layers": 1, "item_layers": 2, "neighbours": 6},
    "smore": {"layers": 2, "item_layers": 2, "neighbours": 6},
}


def numpy_mf(params, catalog):
    del catalog
    return params["users"], params["items"], {}


def numpy_lightgcn(params, catalog):
    adjacency = dense.user_item(catalog)
    users, items = params["users"], params["items"]
    return *dense.propagate(adjacency, users, items, 3), {}


def numpy_vbpr(params, catalog):
    both = np.concatenate(
        [dense.standardised(catalog.features[n]) for n in ("image", "text")],
        axis=1,
    )
    projection = params["projection"]
    content = both @ projection["kernel"] + projection["bias"]
    items = np.concatenate([params["items"], content], axis=1)
    return params["users"], items, {}


def numpy_freedom(params, catalog):
    users, items = dense.propagate(
        dense.user_item(catalog), params["users"], params["items"], 1
    )
    similar = sum(
        weight * dense.nearest_items(catalog.features[name], 5, "binary")
        for name, weight in (("text", 0.75), ("image", 0.25))
    )
    views = {
        name: (
            users,
            params[f"{name}_features"] @ params[name]["kernel"]
            + params[name]["bias"],
        )
        for name in ("text", "image")
    }
    return users, items + similar @ similar @ params["items"], views


def numpy_mci(params, catalog, weights=(("text", 0.75), ("image", 0.25))):
    adjacency = dense.user_item(catalog)
    content = dense.propagate(adjacency, params["users"], params["items"], 1)
    side_users, side_items = 0, 0
    for name, weight in weights:
        graph = dense.nearest_items(catalog.features[name], 6, "cosine")
        items = graph @ graph @ params["items"]
        side_items = side_items + 0.5 * weight * items
        side_users = side_users + 0.5 * weight * (adjacency @ items)
    return (
        content[0] + side_users,
        content[1] + side_items,
        {"content": content, "side": (side_users, side_items)},
    )


def layer(x, params):
    """A dense layer, or a projection."""
    return x @ params["kernel"] + params.get("bias", 0)


def numpy_bm3(params, catalog, names=("image", "text")):
    users, items = dense.propagate(
        dense.user_item(catalog), params["users"], params["items"], 2
    )
    items = items + params["items"]
    predictor = params["predictor"]
    online = layer(users, predictor)
    views = {"target": (users, items)}
    for name in names:
        features = dense.standardised(catalog.features[name])
        content = layer(features, params[f"embed_{name}"])
        views[name] = online, layer(content, predictor)
        views[f"{name}_target"] = users, content
    return online, layer(items, predictor), views


def gated(params, name, content, catalog, present):
    """Free vectors of items, as far as a gate lets them through."""
    gate = special.expit(layer(content, params[f"gate_{name}"]))
    return np.where(present[:, None], params["items"] * gate, 0)


def masked_softmax(logits, there):
    """Over the last axis, of those entries that are there."""
    shares = np.where(there, np.exp(logits), 0)
    total = shares.sum(axis=1, keepdims=True)
    alike = np.full_like(shares, 1 / shares.shape[1])
    return np.where(total > 0, shares / np.where(total > 0, total, 1), alike)


def numpy_mgcn(params, catalog, names=("image", "text"), released=False):
    adjacency = dense.user_item(catalog)
    content = dense.propagate(adjacency, params["users"], params["items"], 1)
    items, there = [], []
    for name in names:
        matrix = catalog.features[name]
        features = dense.standardised(matrix)
        embedded = layer(features, params[f"embed_{name}"])
        vectors = gated(params, name, embedded, catalog, matrix.present)
        graph = dense.nearest_items(matrix, 6, "cosine")
        items.append(graph @ graph @ vectors)
        there.append(matrix.present)
    fuser, side = params["fuser"], []
    for part, behaviour in enumerate(content):
        sides = items if part else [adjacency @ x for x in items]
        known = np.array(there).T if part else np.ones((len(behaviour), 1))
        known = np.broadcast_to(known, (len(behaviour), len(names))) > 0
        logits = [
            layer(np.tanh(layer(x, fuser["attend"])), fuser["query"])[:, 0]
            for x in sides
        ]
        shares = masked_softmax(np.array(logits).T, known)
        shared = sum(
            s[:, None] * x for s, x in zip(shares.T, sides, strict=True)
        )
        own = sum(
            special.expit(layer(behaviour, fuser[f"prefer_{name}"]))
            * (x - shared)
            * seen[:, None]
            for name, x, seen in zip(names, sides, known.T, strict=True)
        )
        if released:
            side.append((shared + own) / (len(names) + 1))
        else:
            side.append(shared + own / len(names))
    users, vectors = (c + s for c, s in zip(content, side, strict=True))
    return users, vectors, {"content": content, "side": tuple(side)}


def numpy_smore(params, catalog, names=("image", "text"), released=False):
    adjacency = dense.user_item(catalog)
    content = dense.propagate(adjacency, params["users"], params["items"], 2)
    waves, graphs, there = {}, {}, {}
    for name in names:
        matrix = catalog.features[name]
        features = dense.standardised(matrix)
        embedded = layer(features, params[f"embed_{name}"])
        waves[name] = np.fft.rfft(embedded, axis=1, norm="ortho")
        graphs[name] = dense.nearest_items(matrix, 6, "cosine")
        there[name] = matrix.present
    graphs["fused"] = np.max([*graphs.values()], axis=0)
    waves["fused"] = np.prod(
        [np.where(there[n][:, None], waves[n], 1) for n in names], axis=0
    )
    there["fused"] = np.any([*there.values()], axis=0)
    items = {}
    for name, wave in waves.items():
        real, imaginary = params[f"filter_{name}"]
        wave = wave * (real + 1j * imaginary)
        width = params["items"].shape[1]
        signal = np.fft.irfft(wave, n=width, axis=1, norm="ortho")
        vectors = gated(params, name, signal, catalog, there[name])
        items[name] = graphs[name] @ graphs[name] @ vectors
    balance, side = params["balance"], []
    for part, behaviour in enumerate(content):
        sides = {n: x if part else adjacency @ x for n, x in items.items()}
        logits = [
            layer(
                np.tanh(layer(sides["fused"], balance[f"attend_{name}"])),
                balance[f"query_{name}"],
            )
            for name in names
        ]
        if released:
            shares = [special.softmax(logit, axis=1) for logit in logits]
        else:
            known = np.ones((len(behaviour), len(names)), bool)
            if part:
                known = np.array([there[name] for name in names]).T
            flat = np.concatenate(logits, axis=1)
            shares = masked_softmax(flat, known).T[..., None]
        gate = {
            n: special.expit(layer(behaviour, balance[f"prefer_{n}"]))
            for n in sides
        }
        single = sum(
            share * sides[name] * gate[name]
            for name, share in zip(names, shares, strict=True)
        )
        fused = sides["fused"] * gate["fused"]
        if released:
            side.append((single + fused) / (len(names) + 1))
        else:
            side.append(single / len(names) + fused)
    users, vectors = (c + s for c, s in zip(content, side, strict=True))
    return users, vectors, {"content": content, "side": tuple(side)}


NUMPY = {
    "mf": numpy_mf,
    "lightgcn": numpy_lightgcn,
    "vbpr": numpy_vbpr,
    "freedom": numpy_freedom,
    "mci": numpy_mci,
    "bm3": numpy_bm3,
    "mgcn": numpy_mgcn,
    "smore": numpy_smore,
}
