"""Parameters that NumPy draws, because the initialisation of a model takes seconds to compile."""

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.model.config import ModelConfig
from t5lite.model.transformer import parameter_shapes


def drawn_params(config: ModelConfig, seed: int = 0, spread: float = 1.0) -> dict:
    """Return float32 parameters far from the initialisation. Kernels are scaled by fan-in, and norm scales are near 1.

    spread: a factor on all random numbers.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        stddev = leaf.shape[-2] ** -0.5 if name == "kernel" else 1.0 if name == "embedding" else 0.3
        middle = 1.0 if name == "scale" else 0.0
        return jnp.asarray(middle + spread * stddev * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(config))
