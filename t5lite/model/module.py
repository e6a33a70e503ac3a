"""The base class of the model's modules."""

from typing import Any

from flax import linen as nn


class Module(nn.Module):
    """A Flax module that takes existing parameters as they are.

    Flax traces the initialisation of each parameter whenever a module is applied, and compares the shapes. This takes
    a quarter of the time of tracing a training step. Here the readers of checkpoints compare the shapes.
    """

    def param(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Return the parameter `name`. Without such a parameter, make it; see nn.Module.param."""
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return super().param(name, *arguments, **keywords)
