"""Your own training loop in plain JAX takes NegGen's and GDNSM's negatives.

    python docs/examples/own_loop.py --data=DIR

A recommender as somebody may have one: parameters, batches, loss and loop are
its own. After "# --- ours" stands what takes generated negatives, and nothing
else does. It is trained without them, with each kind and with both; without
--data, on a small catalogue made in place.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import small_shop
from absl import flags

from neggen_jax import api, command

EPOCHS = flags.DEFINE_integer("epochs", 40, "How long to train.")
SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")
flags.adopt_module_key_flags(small_shop)
DIM, BATCH = 64, 1024

# --- ours: what is asked for, as configs/neggen.py and gdnsm.py have it
NEGATIVES = {
    "neggen": dict(name="counterfactual", effect="content", length="embedding"),
    "gdnsm": dict(name="diffusion", start=4.0, steps=5, eta=0.0),
}
WEIGHTS = {"neggen": 0.01, "gdnsm": 0.05}
LOSSES = {
    "alignment": dict(
        name="alignment", source="neggen", weight=1.0, anchor="user", others=512
    )
}


def against(user, item, drawn):
    """BPR against generated negatives, `[B, K, DIM]` with weights `[B, K]`."""
    item = item if drawn.positives is None else drawn.positives
    apart = jnp.einsum("bkd,bd->bk", drawn.vectors - item[:, None], user)
    many = jnp.maximum(drawn.weights.sum(), 1)
    return (jax.nn.softplus(apart) * drawn.weights).sum() / many


# --- end of ours


def init(catalog, key):
    """A vector for every user and item, and a layer for the items' texts."""
    sizes = {
        "users": catalog.num_users,
        "items": catalog.num_items,
        "words": catalog.features["text"].dim,
    }
    return {
        name: 0.1 * jax.random.normal(jax.random.fold_in(key, n), (size, DIM))
        for n, (name, size) in enumerate(sizes.items())
    }


def embed(params, texts):
    """Users and items, `[n, DIM]` each."""
    return params["users"], params["items"] + texts @ params["words"]


def bpr(user, item, other):
    """Pairs against items drawn at random, with some decay."""
    apart = (user * (other - item)).sum(-1)
    squares = sum(jnp.square(x).sum(-1).mean() for x in (user, item, other))
    return jax.nn.softplus(apart).mean() + 5e-3 * squares


def batches(catalog, epochs, seed):
    """Shuffled pairs, each with an item drawn at random."""
    rng, train = np.random.default_rng(seed), catalog.train
    for _ in range(epochs):
        order = rng.permutation(len(train))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            some = order[start : start + BATCH]
            others = rng.integers(catalog.num_items, size=BATCH)
            pairs = {"users": train.users[some], "items": train.items[some]}
            yield {**pairs, "others": others.astype(np.int32)}


def train(catalog, negatives, losses, epochs, seed):
    """Trains; returns the loss of each step, and vectors to rank with."""
    key, texts = jax.random.key(seed), catalog.features["text"].values
    params, optimizer = {"own": init(catalog, key)}, optax.adam(3e-3)
    length = {"batch_size": BATCH, "epochs": epochs}
    # --- ours: sources, what they learn, and what they keep
    ours = api.attach(
        catalog, DIM, negatives=negatives, losses=losses, **length
    )
    params["extra"], kept = ours.init(key)
    # --- end of ours
    state = optimizer.init(params)

    @jax.jit
    def step(ours, params, kept, state, texts, batch, number):
        def loss(params):
            users, items = embed(params["own"], texts)
            user, item = users[batch["users"]], items[batch["items"]]
            own = bpr(user, item, items[batch["others"]])
            # --- ours: negatives, and the losses of who draws them
            once = jax.random.fold_in(key, number)
            encoded = api.Encoded(users, items)
            drawn, after = ours.draw(
                params["extra"], kept, encoded, batch, number, once
            )
            more, _ = ours.loss(encoded, batch, drawn)
            for kind, some in drawn.items():
                more += WEIGHTS[kind] * against(user, item, some)
            # --- end of ours
            return own + more, (own, after)

        grads, (own, after) = jax.grad(loss, has_aux=True)(params)
        updates, state_ = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), after, state_, own

    told = []
    for number, batch in enumerate(batches(catalog, epochs, seed)):
        params, kept, state, own = step(
            ours, params, kept, state, texts, batch, number
        )
        told.append(own)
    users, items = embed(params["own"], texts)
    # --- ours: NegGen ranks by effects too
    items = ours.extend(params["extra"], api.Encoded(users, items)).items
    # --- end of ours
    return np.array(told), users, items


def main(argv):
    """Prints how the loss fell, and what was found on test."""
    del argv
    catalog = api.load_dataset(
        small_shop.directory(), counterfactuals="attributes"
    )
    for kinds in ((), ("neggen",), ("gdnsm",), ("neggen", "gdnsm")):
        negatives = {kind: NEGATIVES[kind] for kind in kinds}
        losses = LOSSES if "neggen" in kinds else {}
        told, *vectors = train(
            catalog, negatives, losses, EPOCHS.value, SEED.value
        )
        found = api.accuracy(catalog, *vectors)["recall@20"]
        name = " and ".join(kinds) or "own negatives alone"
        first, last = told[:10].mean(), told[-10:].mean()
        print(f"{name}: own loss {first:.3f} -> {last:.3f}, ", end="")
        print(f"test Recall@20 {found:.4f}", flush=True)


if __name__ == "__main__":
    command.run(main)
