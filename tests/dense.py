"""References in dense float64 NumPy, written from the papers.

Nothing here reads the package but the catalogue's own columns.
"""

import numpy as np


def user_item(catalog):
    """`D_U^-1/2 R D_I^-1/2`, `[users, items]`."""
    matrix = np.zeros((catalog.num_users, catalog.num_items))
    matrix[catalog.train.users, catalog.train.items] = 1
    return normalised(matrix)


def normalised(matrix):
    """`D^-1/2 A D^-1/2` of a matrix of zeros and ones."""
    rows = np.sqrt(np.maximum(matrix.sum(axis=1), 1))
    columns = np.sqrt(np.maximum(matrix.sum(axis=0), 1))
    return matrix / rows[:, None] / columns


def standardised(features):
    """Mean zero over the items that are there, mean square of entries one."""
    there = features.values[features.present].astype(np.float64)
    centred = there - there.mean(axis=0)
    out = np.zeros(features.values.shape)
    out[features.present] = centred / np.sqrt(np.square(centred).mean())
    return out


def nearest_items(features, k, values):
    """`D^-1/2 S D^-1/2`, S the k largest cosines of each row, D its sums."""
    vectors = features.values.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    cosine = unit @ unit.T
    cosine[:, ~features.present] = -np.inf
    kept = np.zeros_like(cosine)
    for item in np.flatnonzero(features.present):
        best = np.argsort(-cosine[item], kind="stable")[:k]
        best = best[cosine[item, best] > -np.inf]
        if values == "binary":
            kept[item, best] = 1
        else:
            kept[item, best] = np.maximum(cosine[item, best], 0)
    degree = kept.sum(axis=1)
    scale = np.zeros_like(degree)
    scale[degree > 0] = degree[degree > 0] ** -0.5
    return kept * scale[:, None] * scale


def propagate(adjacency, users, items, layers):
    """LightGCN: mean of `A^l [U; I]`, A over users and items alike."""
    num_users, num_items = adjacency.shape
    whole = np.block(
        [
            [np.zeros((num_users, num_users)), adjacency],
            [adjacency.T, np.zeros((num_items, num_items))],
        ]
    )
    ego = np.concatenate([users, items])
    mean = sum(np.linalg.matrix_power(whole, n) for n in range(layers + 1))
    out = mean @ ego / (layers + 1)
    return out[:num_users], out[num_users:]


def softplus(x):
    return np.logaddexp(0.0, x)


def bpr(users, items, batch, negatives):
    """Mean of softplus(y_neg - y_pos); negatives `[B, K]`."""
    left = users[batch["users"]]
    positive = (left * items[batch["items"]]).sum(-1)
    negative = np.einsum("bd,bkd->bk", left, items[negatives])
    return softplus(negative - positive[:, None]).mean()
