"""Studies: named configs that depend on one another, and the processes that run them."""

from t5lite.studies.study import repeat

__all__ = ["repeat"]
