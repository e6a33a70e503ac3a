"""An encoder's heads: their parameters, their answers, and the inputs that the answers depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from t5lite.model.build import make_model
from t5lite.objectives.batch import Batch
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Vocabulary
from tests.heads import heads as made
from tests.small import small_config

VOCABULARY = Vocabulary.synthetic(290, 20)
ROWS, LENGTH = 3, 7
OF_ALL = {"token_embedding/embedding", "token_type_embedding/embedding"}
TRANSFORM = {"mlm_transform/dense/kernel", "mlm_transform/norm/scale"}


def build(heads=None, architecture="encoder", **fields):
    config = small_config("", "mlm", architecture)
    config.model.update(fields)
    return make_model(config.model, VOCABULARY, heads or made())


def batch(**sides):
    ids = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 3, 290)
    return Batch(targets=ids, weights=jnp.ones(ids.shape), inputs=ids, **sides)


def outputs(model, params, batch):
    return model.apply({"params": params}, batch, method="outputs")


@pytest.mark.parametrize(
    ("heads", "own", "shapes"),
    [
        (made(), TRANSFORM, {"vocabulary": (ROWS, LENGTH, 384)}),
        (
            made(next_sentence=True),
            {*TRANSFORM, "pooler/kernel", "next_sentence/kernel"},
            {"vocabulary": (ROWS, LENGTH, 384), "next_sentence": (ROWS, 2)},
        ),
        (made(vocabulary=False, classifier=5), {"pooler/kernel", "classifier/kernel"}, {"classifier": (ROWS, 5)}),
        (made(vocabulary=False, tagger=4), {"tagger/kernel"}, {"tagger": (ROWS, LENGTH, 4)}),
    ],
    ids=["mlm", "next_sentence", "classifier", "tagger"],
)
def test_a_head_has_its_parameters_and_the_rest_is_shared(heads, own, shapes):
    model = build(heads)
    params = model.init(jax.random.key(0), batch())["params"]
    paths = {path for path in flatten_dict(params, sep="/") if not path.startswith("encoder/")}
    assert paths == OF_ALL | own
    found = outputs(model, params, batch())
    assert {head: logits.shape for head, logits in found.items()} == shapes
    assert all(logits.dtype == jnp.float32 for logits in found.values())


def test_the_transform_and_token_types_can_be_left_out():
    params = build(mlm_transform=False, token_types=0, tie_embeddings=False).init(jax.random.key(0), batch())["params"]
    assert set(params) == {"token_embedding", "encoder", "lm_head"}


def test_other_architectures_have_neither():
    model = build(architecture="encoder_decoder")
    assert model.config.token_types == 0 and not model.config.mlm_transform


def test_token_types_tell_tokens_apart_and_none_are_all_zero():
    model = build(made(next_sentence=True))
    params = model.init(jax.random.key(0), batch())["params"]
    of = lambda types: outputs(model, params, batch(token_types=types))
    none, zeros, ones = (of(types) for types in (None, jnp.zeros((ROWS, LENGTH), int), jnp.ones((ROWS, LENGTH), int)))
    np.testing.assert_allclose(zeros["vocabulary"], none["vocabulary"], rtol=1e-6)
    assert jnp.abs(ones["next_sentence"] - none["next_sentence"]).max() > 0.01
    embedding = params["token_type_embedding"]["embedding"]
    params["token_type_embedding"] = {"embedding": embedding[::-1]}
    np.testing.assert_allclose(of(None)["vocabulary"], ones["vocabulary"], rtol=1e-5, atol=1e-5)


def test_a_label_is_read_off_the_first_token_and_padding_is_not_seen():
    model = build(made(vocabulary=False, classifier=5))
    params = model.init(jax.random.key(0), batch())["params"]
    real = jnp.arange(LENGTH) < 4
    of = lambda inputs: outputs(model, params, batch(inputs_segment_ids=jnp.tile(real, (ROWS, 1)).astype(int)).replace(
        inputs=inputs))["classifier"]  # fmt: skip
    inputs = batch().inputs
    np.testing.assert_array_equal(of(inputs), of(jnp.where(real, inputs, 0)))
    for place in (0, 3):
        assert jnp.abs(of(inputs) - of(inputs.at[:, place].add(1))).max() > 1e-3


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_only_an_encoder_has_token_types(architecture):
    assert build(architecture=architecture, token_types=None).config.token_types == 0
    with pytest.raises(UserError, match=r"config\.model\.token_types=2: only an encoder"):
        build(architecture=architecture, token_types=2)
