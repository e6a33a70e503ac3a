"""Each optimizer against its formulas in NumPy, and what the per-parameter tables promise."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import optax.contrib
import pytest

from t5lite.system.errors import UserError
from t5lite.training.optimizer import make_optimizer
from t5lite.training.tables import flatten_with_paths

N, D, F, V = 3, 8, 12, 16
KERNEL, EMBEDDING, SCALE = "encoder/layers/mlp/up/kernel", "token_embedding/embedding", "encoder/layers/mlp/norm/scale"
BIAS = "encoder/relative_bias/embedding"
ALL = ("adamw", "adafactor", "lion", "muon")


def nest(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def random_tree(seed, layers=N):
    shapes = {KERNEL: (layers, D, F), EMBEDDING: (V, D), SCALE: (layers, D), BIAS: (4, 2)}
    rng = np.random.default_rng(seed)
    # Layers of very different sizes, so that a mean over them shows.
    return {path: (rng.normal(size=shape) * (1.0 + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))))
            .astype(np.float32) for path, shape in shapes.items()}  # fmt: skip


def schedule(step):
    return 0.1 / (step + 1.0)


def run(fields, params, grads, steps=2):
    """The updates of each step as flat dicts of float64, and the last state. Clips only where `fields` say so."""
    optimizer = make_optimizer({"clip_norm": 0.0, **fields}, nest(params))
    tree, updates = nest(params), []
    state = optimizer.init(tree)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        change, state = update(nest(grads[step]), state, tree, rate=schedule(step))
        tree = optax.apply_updates(tree, change)
        updates.append({path: np.asarray(u, np.float64) for path, u in flatten_with_paths(change)})
    return updates, state


def reference(direction, params, grads, decay=0.0, steps=2):
    """The updates of `direction`(path, step, gradient, parameter, memory), with decoupled decay and the schedule."""
    params = {path: p.astype(np.float64) for path, p in params.items()}
    memory, updates = {path: {} for path in params}, []
    for step in range(steps):
        updates.append({})
        for path, p in params.items():
            u = direction(path, step, grads[step][path].astype(np.float64), p, memory[path])
            u = u + decay * p * (path in (KERNEL, EMBEDDING))
            updates[-1][path] = -0.1 / (step + 1.0) * u
            params[path] = p + updates[-1][path]
    return updates


def assert_same(actual, expected, paths=None, rtol=2e-5):
    for ours, theirs in zip(actual, expected, strict=True):
        for path in paths or theirs:
            np.testing.assert_allclose(ours[path], theirs[path], rtol=rtol, atol=1e-6, err_msg=path)


PARAMS, GRADS = random_tree(0), [random_tree(1), random_tree(2)]


def adam_direction(path, step, g, p, memory, b1=0.9, b2=0.95, epsilon=1e-6):
    m = memory["m"] = b1 * memory.get("m", 0.0) + (1 - b1) * g
    v = memory["v"] = b2 * memory.get("v", 0.0) + (1 - b2) * g * g
    return m / (1 - b1 ** (step + 1)) / (np.sqrt(v / (1 - b2 ** (step + 1))) + epsilon)


def test_adamw_follows_its_paper():
    fields = {"name": "adamw", "b1": 0.9, "b2": 0.95, "epsilon": 1e-6, "weight_decay": 0.3}
    assert_same(run(fields, PARAMS, GRADS)[0], reference(adam_direction, PARAMS, GRADS, decay=0.3))


def test_lion_follows_its_paper():
    def direction(path, step, g, p, memory):
        m = memory.get("m", np.zeros_like(g))
        memory["m"] = 0.98 * m + 0.02 * g
        return np.sign(0.95 * m + 0.05 * g)

    fields = {"name": "lion", "b1": 0.95, "b2": 0.98, "weight_decay": 0.3}
    assert_same(run(fields, PARAMS, GRADS)[0], reference(direction, PARAMS, GRADS, decay=0.3))


def adafactor_direction(min_size, momentum=0.0):
    """One layer at a time, by Shazeer and Stern's algorithms 4 and 5 with the relative step of their section 8."""

    def one(g, p, memory, step):
        decay = 1.0 - (step + 1.0) ** -0.8
        square = g * g + 1e-30
        if g.ndim == 2 and min(g.shape) >= min_size:
            row = memory["row"] = decay * memory.get("row", 0.0) + (1 - decay) * square.mean(1)
            col = memory["col"] = decay * memory.get("col", 0.0) + (1 - decay) * square.mean(0)
            second = np.outer(row, col) / row.mean()
        else:
            second = memory["v"] = decay * memory.get("v", 0.0) + (1 - decay) * square
        u = g / np.sqrt(second)
        u = u / max(1.0, np.sqrt((u * u).mean())) * max(1e-3, np.sqrt((p * p).mean()))
        u = memory["m"] = momentum * memory.get("m", 0.0) + (1 - momentum) * u
        return u

    def direction(path, step, g, p, memory):
        if "/layers/" not in path:
            return one(g, p, memory, step)
        return np.stack([one(g[i], p[i], memory.setdefault(i, {}), step) for i in range(len(g))])

    return direction


@pytest.mark.parametrize(("min_size", "momentum"), [(128, 0.0), (8, 0.0), (8, 0.5)])
def test_adafactor_follows_its_paper_layer_by_layer(min_size, momentum):
    fields = {"name": "adafactor", "min_size_to_factor": min_size, "momentum": momentum, "weight_decay": 0.3}
    expected = reference(adafactor_direction(min_size, momentum), PARAMS, GRADS, decay=0.3)
    assert_same(run(fields, PARAMS, GRADS)[0], expected)


def test_adafactor_equals_optax_where_nothing_is_stacked():
    params, grads = ({"a/kernel": tree[KERNEL][0], "b/scale": tree[SCALE][0]} for tree in (PARAMS, GRADS[0]))
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=8)
    expected, _ = optimizer.update(nest(grads), optimizer.init(nest(params)), nest(params))
    ours, _ = run({"name": "adafactor", "min_size_to_factor": 8}, params, [grads], steps=1)
    assert_same(ours, [dict(flatten_with_paths(expected))])


def test_adafactor_factors_matrices_never_layers():
    params = random_tree(0, layers=20)
    _, state = run({"name": "adafactor", "min_size_to_factor": 8}, params, [random_tree(1, layers=20)], steps=1)
    shapes = {path.split("inner_state/0/")[-1]: leaf.shape for path, leaf in flatten_with_paths(state)}
    assert shapes[f"v_row/{KERNEL}"] == (20, D) and shapes[f"v_col/{KERNEL}"] == (20, F)
    assert shapes[f"v/{KERNEL}"] == (1,)
    assert shapes[f"v/{SCALE}"] == (20, D), "20 layers of a vector of 8 are no matrix"


def newton_schulz(g):
    """Muon's quintic iteration, three times, on one matrix whose rows were scaled by their Gram matrix's sums."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / np.sqrt(np.abs(x @ x.T).sum(axis=1, keepdims=True))
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def test_muon_orthogonalises_each_layers_matrix_alone_and_leaves_the_rest_to_adam():
    fields = {"name": "muon", "b1": 0.9, "b2": 0.95, "epsilon": 1e-6, "momentum": 0.9, "weight_decay": 0.3}
    fields["adam_rate"] = 0.5
    updates, _ = run(fields, PARAMS, GRADS, steps=1)
    # At the first step Nesterov's momentum is a multiple of the gradient, which the iteration normalises away.
    expected = [newton_schulz(g) * 0.2 * F**0.5 + 0.3 * p
                for g, p in zip(GRADS[0][KERNEL].astype(np.float64), PARAMS[KERNEL], strict=True)]  # fmt: skip
    np.testing.assert_allclose(updates[0][KERNEL], -0.1 * np.stack(expected), atol=1e-5)

    adam = reference(adam_direction, PARAMS, GRADS, decay=0.3, steps=1)[0]
    for path in (EMBEDDING, SCALE, BIAS):
        np.testing.assert_allclose(updates[0][path], 0.5 * adam[path], rtol=2e-5, atol=1e-6)


def test_muon_updates_a_stacked_leaf_as_it_updates_its_layers():
    stacked, _ = run({"name": "muon"}, {KERNEL: PARAMS[KERNEL]}, [{KERNEL: g[KERNEL]} for g in GRADS])
    for i in range(N):
        cut = {KERNEL: PARAMS[KERNEL][i : i + 1]}
        alone, _ = run({"name": "muon"}, cut, [{KERNEL: g[KERNEL][i : i + 1]} for g in GRADS])
        for both, one in zip(stacked, alone, strict=True):
            np.testing.assert_allclose(both[KERNEL][i], one[KERNEL][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_frozen_parameters_keep_their_bits_and_have_no_state(name):
    params = {**PARAMS, EMBEDDING: np.full((V, D), -0.0, np.float32)}
    fields = {"name": name, "weight_decay": 0.3, "clip_norm": 1.0,
              "trainable": ((r"token_embedding/.*|.*/norm/.*", False), (r".*", True))}  # fmt: skip
    optimizer = make_optimizer(fields, nest(params))
    state = optimizer.init(nest(params))
    updates, state = jax.jit(optimizer.update)(nest(GRADS[0]), state, nest(params), rate=0.1)
    after = dict(flatten_with_paths(optax.apply_updates(nest(params), updates)))
    for path in (EMBEDDING, SCALE):
        assert np.asarray(after[path]).tobytes() == params[path].tobytes()
        assert not any(path in at for at, _ in flatten_with_paths(state))
    assert not np.array_equal(after[KERNEL], params[KERNEL])
    assert any(KERNEL in at for at, _ in flatten_with_paths(state))


@pytest.mark.parametrize(
    "fields", [{"name": name} for name in ALL] + [{"name": "adafactor", "momentum": 0.9, "min_size_to_factor": 8}]
)
def test_an_update_that_is_left_out_leaves_no_trace(fields):
    params = {**PARAMS, SCALE: np.full((N, D), -0.0, np.float32)}
    optimizer = make_optimizer({**fields, "weight_decay": 0.3, "clip_norm": 1.0}, nest(params))
    update = jax.jit(optimizer.update)
    broken = nest({path: np.full_like(g, np.nan) for path, g in GRADS[0].items()})

    def run(grads):
        tree, state = nest(params), optimizer.init(nest(params))
        for g in grads:
            changes, state = update(g, state, tree, rate=0.1, applies=g is not broken)
            tree = optax.apply_updates(tree, changes)
        return {path: np.asarray(leaf).tobytes() for path, leaf in flatten_with_paths((tree, state))}

    straight, with_gap = (
        run(grads) for grads in ([*map(nest, GRADS)], [broken, nest(GRADS[0]), broken, nest(GRADS[1])])
    )
    different = [path for path in straight if straight[path] != with_gap[path]]
    assert len(different) == 1 and different[0].endswith("/count"), "the schedule's step alone goes on"


@pytest.mark.parametrize("name", ALL)
def test_leaving_an_update_out_holds_no_second_state(name):
    shapes = {f"encoder/layers/mlp/{part}/kernel": (4, 128, 128) for part in ("gate", "up", "down")}
    params = nest({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})
    optimizer = make_optimizer({"name": name, "weight_decay": 0.1, "clip_norm": 1.0}, params)

    def temporaries(chooses):
        def step(params, state, inputs):
            grads = jax.grad(lambda p: sum(jnp.sum(jnp.tanh(inputs @ leaf)) for leaf in jax.tree.leaves(p)))(params)
            more = {"applies": jnp.isfinite(optax.tree.norm(grads))} if chooses else {}
            changes, state = optimizer.update(grads, state, params, rate=0.1, **more)
            return optax.apply_updates(params, changes), state

        inputs = jax.ShapeDtypeStruct((8, 128), jnp.float32)
        state = jax.eval_shape(optimizer.init, params)
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(chooses=True) <= 1.05 * temporaries(chooses=False)


def test_the_state_is_laid_out_as_optax_lays_it_out_so_that_checkpoints_stay_readable():
    table = ((EMBEDDING, False), (r".*", True))
    frozen = jax.tree.map(lambda path: "frozen" if path == EMBEDDING else "trainable", nest({p: p for p in PARAMS}))
    by_muon = jax.tree.map(lambda path: "muon" if path == KERNEL else "adam", nest({p: p for p in PARAMS}))
    muon = optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=lambda u: u), optax.identity())
    methods = {
        "adamw": [optax.scale_by_adam()],
        "lion": [optax.scale_by_lion()],
        "adafactor": [optax.scale_by_factored_rms(), optax.identity(), optax.identity(), optax.ema(0.9)],
        "muon": [optax.partition({"muon": muon, "adam": optax.chain(optax.scale_by_adam())}, by_muon)],
    }
    for name, steps in methods.items():
        fields = {"name": name, "weight_decay": 0.3, "clip_norm": 1.0, "trainable": table}
        fields |= {"momentum": 0.9} if name == "adafactor" else {}
        rates = [optax.identity(), optax.scale_by_learning_rate(schedule), optax.identity()]
        chain = optax.chain(optax.clip_by_global_norm(1.0), *steps, *rates)
        expected = optax.partition({"trainable": chain, "frozen": optax.identity()}, frozen).init(nest(PARAMS))
        actual = make_optimizer(fields, nest(PARAMS)).init(nest(PARAMS))
        assert jax.tree.structure(actual) == jax.tree.structure(expected), name


def test_clipping_is_by_the_norm_of_trainable_gradients_together():
    fields = {"name": "adamw", "b1": 0.0, "b2": 0.0, "epsilon": 1.0, "trainable": ((EMBEDDING, False), (r".*", True))}
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for path, g in GRADS[0].items() if path != EMBEDDING))
    scaled = [{path: g / np.float32(norm) * np.float32(2.0) for path, g in GRADS[0].items()}]
    clipped = run({**fields, "clip_norm": 2.0}, PARAMS, GRADS, steps=1)[0]
    assert_same(clipped, run(fields, PARAMS, scaled, steps=1)[0])
    assert_same(run({**fields, "clip_norm": 2 * norm}, PARAMS, GRADS, steps=1)[0],
                run({**fields, "clip_norm": 0.0}, PARAMS, GRADS, steps=1)[0])  # fmt: skip


def test_multipliers_scale_the_rate_and_the_decay_of_what_they_name():
    plain = run({"name": "adamw", "weight_decay": 0.0}, PARAMS, GRADS, steps=1)[0][0]
    fields = {"name": "adamw", "weight_decay": 0.5, "rate_multipliers": ((EMBEDDING, 0.25), (r".*", 1)),
              "weight_decay_multipliers": ((r".*/scale", 2.0), (r".*", 0.0))}  # fmt: skip
    tuned = run(ml_collections.ConfigDict(fields), PARAMS, GRADS, steps=1)[0][0]
    np.testing.assert_allclose(tuned[EMBEDDING], 0.25 * plain[EMBEDDING], rtol=1e-5)
    np.testing.assert_allclose(tuned[SCALE], plain[SCALE] - 0.1 * 0.5 * 2.0 * PARAMS[SCALE], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(tuned[KERNEL], plain[KERNEL])


def test_shapes_are_enough_to_make_one_and_to_plan_its_state():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), nest(PARAMS))
    for name in ALL:
        state = jax.eval_shape(make_optimizer({"name": name}, shapes).init, shapes)
        real = make_optimizer({"name": name}, nest(PARAMS)).init(nest(PARAMS))
        assert [(path, leaf.shape) for path, leaf in flatten_with_paths(state)] == [
            (path, leaf.shape) for path, leaf in flatten_with_paths(real)
        ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, r"optimizer\.name.*adamw"),
        ({"b1": 1.0}, r"optimizer\.b1"),
        ({"weight_decay": -0.1}, r"optimizer\.weight_decay"),
        ({"clip_norm": -1.0}, r"optimizer\.clip_norm"),
        ({"clip": 1.0}, r"optimizer\.clip: unknown field.*clip_norm"),
        ({"trainable": ((r"encoder/.*", True),)}, r"trainable.*token_embedding/embedding"),
        ({"trainable": ((r"lora/.*", True), (r".*", False))}, r"trainable.*lora.* matches no parameter"),
        ({"trainable": ((r".*", False),)}, r"trainable: every parameter is frozen"),
        ({"trainable": ((r".*", 1.0),)}, r"trainable.*true or false"),
        ({"rate_multipliers": ((r".*", True),)}, r"optimizer\.rate_multipliers.*a number"),
        ({"rate_multipliers": ((r".*", -1.0),)}, r"optimizer\.rate_multipliers.*at least 0"),
        ({"weight_decay_multipliers": ((r"(", 1.0),)}, r"optimizer\.weight_decay_multipliers.*regular expression"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(fields, nest(PARAMS))
