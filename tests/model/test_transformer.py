"""The model's promises: documents of a row do not see each other, and ways to compute do not change the result."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from t5lite.model.config import ModelConfig
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch, Example, decoder, encoder_decoder
from tests.model.drawn import drawn_params

SMALL = ModelConfig(2, 2, 128, d_model=32, d_ff=48, num_heads=4, head_dim=8, relative_buckets=8,
                    relative_max_distance=16, scan_layers=True, tie_embeddings=False)  # fmt: skip
CONFIGS = {
    "encoder_decoder": SMALL,
    "rotary_encoder_decoder": dataclasses.replace(SMALL, positions="rotary", activation="gelu"),
    "decoder": dataclasses.replace(SMALL, num_encoder_layers=0, positions="rotary", activation="swiglu"),
    "t5_decoder": dataclasses.replace(SMALL, num_encoder_layers=0, tie_embeddings=True, activation="relu"),
    "encoder": dataclasses.replace(SMALL, num_decoder_layers=0),
}


@functools.cache
def initial_params(config):
    return jax.jit(Transformer(config).init)(jax.random.key(0), plain_batch(config))["params"]


@functools.cache
def params_for(config):
    return drawn_params(config)


def plain_batch(config, batch=4, length=12, width=8):
    keys = jax.random.split(jax.random.key(1), 3)
    ids = lambda key, columns: jax.random.randint(key, (batch, columns), 3, config.vocab_size)
    side = width if config.num_decoder_layers else length
    return Batch(
        inputs=ids(keys[0], length) if config.num_encoder_layers else None,
        decoder_inputs=ids(keys[1], side) if config.num_decoder_layers else None,
        targets=ids(keys[2], side),
        weights=jnp.ones((batch, side)),
    )


def logits_of(config, params, batch):
    return jax.jit(Transformer(config).apply)({"params": params}, batch)


def loss_of(config):
    """Return the function from parameters to the loss of the plain batch, with dropout if the config has a rate."""
    batch, rngs = plain_batch(config), {"dropout": jax.random.key(5)}

    def loss(params):
        logits = Transformer(config).apply({"params": params}, batch, deterministic=not config.dropout, rngs=rngs)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1).mean()

    return loss


@functools.cache
def loss_and_gradients(config):
    return jax.jit(jax.value_and_grad(loss_of(config)))(params_for(config))


def assert_trees_close(a, b, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance * max(1, np.abs(y).max())), a, b)


def test_parameters_are_the_documented_tree():
    params = initial_params(SMALL)
    shapes = {
        jax.tree_util.keystr(p, simple=True, separator="/"): v.shape for p, v in jax.tree.leaves_with_path(params)
    }
    block = {"norm/scale": (2, 32), "query/kernel": (2, 32, 32), "key/kernel": (2, 32, 32),
             "value/kernel": (2, 32, 32), "output/kernel": (2, 32, 32)}  # fmt: skip
    mlp = {"norm/scale": (2, 32), "gate/kernel": (2, 32, 48), "up/kernel": (2, 32, 48), "down/kernel": (2, 48, 32)}
    expected = {"token_embedding/embedding": (128, 32), "lm_head/kernel": (32, 128)}
    for side, attentions in (("encoder", ["self"]), ("decoder", ["self", "cross"])):
        expected[f"{side}/relative_bias/embedding"] = (8, 4)
        expected[f"{side}/final_norm/scale"] = (32,)
        expected |= {f"{side}/layers/{kind}_attention/{k}": v for kind in attentions for k, v in block.items()}
        expected |= {f"{side}/layers/mlp/{k}": v for k, v in mlp.items()}
    assert shapes == expected
    scanned = initial_params(dataclasses.replace(SMALL, scan_layers=False))
    jax.tree.map(np.testing.assert_array_equal, params, scanned)


@pytest.mark.parametrize(
    ("positions", "tied"),
    [
        ("relative_bias", True),
        pytest.param("relative_bias", False, marks=pytest.mark.slow),
        pytest.param("rotary", True, marks=pytest.mark.slow),
        ("rotary", False),
    ],
)
def test_first_loss_is_near_that_of_a_uniform_guess(positions, tied):
    config = dataclasses.replace(SMALL, positions=positions, tie_embeddings=tied, d_model=128, head_dim=32, d_ff=256)
    loss = jax.jit(loss_of(config))(initial_params(config))
    # T5's tied embeddings predict the last token that was read: its embedding is still in the residual stream.
    slack = 2 if tied and positions == "relative_bias" else 1
    assert np.log(128) - 0.3 < loss < np.log(128) + slack


def packed_and_apart(config):
    """Return two documents in one row, each document in its own row, and the places of their logits."""
    random = np.random.RandomState(0)
    inputs, targets = ([random.randint(3, 128, n) for n in lengths] for lengths in ((5, 6), (4, 3)))

    def example(chosen, pad_inputs, pad_targets):
        sides = {}
        for name, parts, length in (("inputs", inputs, pad_inputs), ("targets", targets, pad_targets)):
            tokens = np.concatenate([parts[i] for i in chosen])
            segments = np.concatenate([np.full(len(parts[i]), n + 1) for n, i in enumerate(chosen)])
            sides[name] = jnp.asarray(np.pad(tokens, (0, length - len(tokens))), jnp.int32)
            sides[f"{name}_segment_ids"] = jnp.asarray(np.pad(segments, (0, length - len(segments))), jnp.int32)
        return Example(**sides, weights=(sides["targets"] > 0).astype(jnp.float32))

    if config.architecture == "encoder_decoder":
        layout = lambda length: encoder_decoder
        places = [(0, 0, 4), (0, 4, 3)]
    else:
        layout = lambda length: lambda example: decoder(example, length=length, prefix_attention=True)
        places = [(0, 0, 9), (0, 9, 9)]
    add_row = lambda batch: jax.tree.map(lambda x: x[None], batch)
    packed = add_row(layout(20)(example([0, 1], 13, 8)))
    apart = [add_row(layout(9)(example([i], len(inputs[i]), len(targets[i])))) for i in (0, 1)]
    return packed, apart, places


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("encoder_decoder", "mapped"),
        ("rotary_encoder_decoder", "einsum"),
        ("decoder", "mapped"),
        ("t5_decoder", "einsum"),
        pytest.param("encoder_decoder", "einsum", marks=pytest.mark.slow),
        pytest.param("rotary_encoder_decoder", "mapped", marks=pytest.mark.slow),
        pytest.param("decoder", "einsum", marks=pytest.mark.slow),
        pytest.param("t5_decoder", "mapped", marks=pytest.mark.slow),
    ],
)
def test_packed_documents_are_what_they_are_alone(name, attention):
    config = dataclasses.replace(CONFIGS[name], attention=attention)
    params = params_for(config)
    packed, apart, places = packed_and_apart(config)
    logits = logits_of(config, params, packed)
    assert np.isfinite(logits).all()
    for (row, start, length), batch in zip(places, apart, strict=True):
        alone = logits_of(config, params, batch)
        np.testing.assert_allclose(logits[row, start : start + length], alone[0, :length], atol=1e-5)


@pytest.mark.parametrize("attention", ["einsum", "mapped"])
@pytest.mark.parametrize("name", ["encoder_decoder", "decoder"])
@pytest.mark.parametrize("side", ["inputs", "decoder_inputs"])
def test_changing_a_document_changes_nothing_in_its_neighbour(name, attention, side):
    config = dataclasses.replace(CONFIGS[name], attention=attention)
    packed, _, places = packed_and_apart(config)
    if getattr(packed, side) is None:
        pytest.skip("a decoder has one side")
    segments = packed.targets_segment_ids if side == "decoder_inputs" else packed.inputs_segment_ids
    changed = packed.replace(**{side: jnp.where(segments == 1, 77, getattr(packed, side))})
    params = params_for(config)
    before, after = (logits_of(config, params, batch) for batch in (packed, changed))
    (_, _, first), (_, start, second) = places
    assert np.abs(before[0, :first] - after[0, :first]).max() > 1e-3
    np.testing.assert_array_equal(before[0, start : start + second], after[0, start : start + second])


@pytest.mark.parametrize("name", ["encoder_decoder", "decoder"])
def test_no_segments_is_one_segment(name):
    config = CONFIGS[name]
    batch, params = plain_batch(config), params_for(config)
    ones = lambda x: None if x is None else jnp.ones_like(x)
    index = lambda x: None if x is None else jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    explicit = batch.replace(
        inputs_segment_ids=ones(batch.inputs), targets_segment_ids=ones(batch.targets),
        inputs_positions=index(batch.inputs), targets_positions=index(batch.targets),
    )  # fmt: skip
    np.testing.assert_allclose(
        logits_of(config, params, batch), logits_of(config, params, explicit), atol=1e-5
    )  # fmt: skip


@pytest.mark.parametrize("name", ["decoder", "t5_decoder"])
def test_prefix_sees_itself_and_nothing_after_it(name):
    config = CONFIGS[name]
    batch, params = plain_batch(config), params_for(config)
    prefix = batch.replace(prefix_mask=jnp.broadcast_to(jnp.arange(8) < 4, (4, 8)))

    def changed_positions(batch, position):
        tokens = batch.decoder_inputs.at[:, position].add(1)
        after = logits_of(config, params, batch.replace(decoder_inputs=tokens))
        return np.abs(after - logits_of(config, params, batch)).max(axis=(0, 2)) > 1e-6

    np.testing.assert_array_equal(changed_positions(batch, 3), np.arange(8) >= 3)
    np.testing.assert_array_equal(changed_positions(prefix, 3), np.arange(8) >= 0)
    np.testing.assert_array_equal(changed_positions(prefix, 5), np.arange(8) >= 5)


def test_encoder_sees_both_directions():
    config = CONFIGS["encoder"]
    batch, params = plain_batch(config), params_for(config)
    after = logits_of(config, params, batch.replace(inputs=batch.inputs.at[:, 7].add(1)))
    assert (np.abs(after - logits_of(config, params, batch)).max(axis=2) > 1e-6).all()


@pytest.mark.parametrize("name", ["encoder_decoder", pytest.param("decoder", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "change",
    [dict(scan_layers=False), dict(remat="full"), dict(scan_layers=False, remat="full"), dict(attention="mapped")],
    ids=lambda change: "+".join(change),
)
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_how_it_computes_changes_nothing(name, change, dropout):
    config = dataclasses.replace(CONFIGS[name], dropout=dropout, dropout_places=("attention",))
    loss, gradients = loss_and_gradients(config)
    other_loss, others = loss_and_gradients(dataclasses.replace(config, **change))
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    assert_trees_close(others, gradients, 1e-5)


def remat_case(remat, scan_layers):
    """Return a loss and the shapes of its parameters. Activations need more memory than the parameters."""
    config = dataclasses.replace(SMALL, num_encoder_layers=4, scan_layers=scan_layers, remat=remat, attention="einsum")
    batch = plain_batch(config, batch=4, length=64)
    params = jax.eval_shape(Transformer(config).init, jax.random.key(0), batch)["params"]
    return (lambda params: Transformer(config).apply({"params": params}, batch).sum()), params


def test_remat_saves_memory():
    """The memory of the compiled program with a scan. In an unrolled program, XLA's CPU backend removes the remat."""

    def temporary_bytes(remat):
        loss, params = remat_case(remat, scan_layers=True)
        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes("full") < 0.6 * temporary_bytes("none")


def test_remat_keeps_the_inputs_of_layers_only(capsys):
    """The unrolled backward pass gets scores [4, 4, 64, 64] only without remat."""

    def kept_scores(remat):
        loss, params = remat_case(remat, scan_layers=False)
        print_saved_residuals(loss, params)
        return capsys.readouterr().out.count("f32[4,4,64,64]")

    assert kept_scores("none") >= 4
    assert kept_scores("full") == 0


@pytest.mark.parametrize("name", ["encoder_decoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_bfloat16_computes_close_and_leaves_float32(name):
    config = dataclasses.replace(CONFIGS[name], dtype="bfloat16")
    params, batch = params_for(config), plain_batch(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    model = Transformer(config)
    hidden = jax.jit(functools.partial(model.apply, method=Transformer.hidden))({"params": params}, batch)
    logits = logits_of(config, params, batch)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    exact = logits_of(CONFIGS[name], params, batch)
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    _, gradients = loss_and_gradients(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


# Without a scan, dropout is what it is with a scan: see test_how_it_computes_changes_nothing.
@pytest.mark.parametrize("scan_layers", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_dropout_is_a_function_of_its_key(scan_layers):
    config = dataclasses.replace(SMALL, dropout=0.2, scan_layers=scan_layers)
    params, batch, model = params_for(config), plain_batch(config), Transformer(config)
    dropped = jax.jit(lambda key: model.apply({"params": params}, batch, deterministic=False, rngs={"dropout": key}))
    drop = lambda seed: dropped(jax.random.key(seed))
    np.testing.assert_array_equal(drop(0), drop(0))
    assert np.abs(drop(0) - drop(1)).max() > 0.1
    without = dataclasses.replace(config, dropout=0.0)
    plain = jax.jit(lambda: Transformer(without).apply({"params": params}, batch, deterministic=False))()
    np.testing.assert_allclose(logits_of(config, params, batch), plain, atol=1e-5)


@pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8"
)
@pytest.mark.parametrize("name", ["encoder_decoder", "decoder"])
@pytest.mark.parametrize("heads", [4, 3], ids=["divisible", "heads_not_divisible"])
def test_a_mesh_changes_nothing(name, heads):
    config = dataclasses.replace(CONFIGS[name], num_heads=heads)
    params, batch = params_for(config), plain_batch(config)
    alone = logits_of(config, params, batch)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        spread = logits_of(config, params, batch)
    assert spread.sharding.spec == jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor")
    np.testing.assert_allclose(spread, alone, atol=1e-5)
