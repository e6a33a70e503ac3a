"""Map the tensors of a folder to the names that the family's table gives them.

In the files, a tensor may have an older name (`gamma`) or another prefix. Some families give one tensor several names.
The files may hold it under any of these names: a shared embedding may be stored as the decoder's embedding.
"""

from collections.abc import Collection

import numpy as np

from t5lite.interop.family import Family, Shape
from t5lite.interop.tensors import TensorFolder
from t5lite.system.errors import UserError

CONFIG = "config.json"


class Names:
    """The names of a folder's tensors: in the files, and in the family's table.

    stored_names: {name in the table: name in the files}.
    repeated: [(name in the files, name of the tensor that it repeats)].
    """

    def __init__(self, family: Family, tensors: TensorFolder):
        self._family, self._tensors = family, tensors
        self.stored_names: dict[str, str] = {}
        self.repeated: list[tuple[str, str]] = []
        for stored_name in tensors.tensors:
            name = family.rename(stored_name)
            if name in self.stored_names:
                self.repeated.append((stored_name, self.stored_names[name]))
            else:
                self.stored_names[name] = stored_name
        for other_name, stored_name in tensors.other_names.items():
            self.stored_names.setdefault(family.rename(other_name), stored_name)

    def shapes(self, exclude: str | None = None) -> dict[str, Shape]:
        """Return {name in the table: shape}, without `exclude`.

        A tensor that is stored under an alias also appears under its original name.
        """
        shapes = {name: self._tensors.tensors[stored].shape for name, stored in self.stored_names.items()}
        repeated = {original: shapes[alias] for alias, original in self._family.aliases.items() if alias in shapes}
        return {name: shape for name, shape in {**repeated, **shapes}.items() if name != exclude}

    def is_redundant(self, name: str) -> bool:
        """Return whether a tensor is stored, and equals all its stored copies. The family's aliases name the copies."""
        original = self._family.aliases[name]
        copies = [original, *(alias for alias, source in self._family.aliases.items() if source == original)]
        stored = [copy for copy in copies if copy in self.stored_names]
        return name in self.stored_names and all(self._are_equal(name, copy) for copy in stored)

    def _are_equal(self, one: str, other: str) -> bool:
        one, other = self.stored_names[one], self.stored_names[other]
        return one == other or np.array_equal(self._tensors.read(one), self._tensors.read(other))

    def resolve(self, wanted: Collection[str]) -> None:
        """Let each missing tensor use the tensor that is stored under an alias.

        If the original is stored too, add the alias to `repeated`.

        wanted: the names in the table that the model reads as separate tensors. They are not used as aliases.
        """
        for alias, original in self._family.aliases.items():
            if alias in wanted or alias not in self.stored_names:
                continue
            stored_name = self.stored_names[alias]
            if self.stored_names.setdefault(original, stored_name) != stored_name:
                self.repeated.append((stored_name, self.stored_names[original]))

    def check_repetitions(self) -> None:
        """Raise UserError if two stored names of one tensor have different values."""
        for copy, original in self.repeated:
            if not np.array_equal(self._tensors.read(copy), self._tensors.read(original)):
                raise UserError(
                    f"{self._tensors.folder}: {copy} should repeat {original}, because both are names of one tensor, "
                    "but their values differ; fetch the weights anew"
                )

    def missing_error(self, name: str) -> UserError:
        """Return the error for a missing tensor."""
        return UserError(f"{self._tensors.folder}: the weights lack {name}, which {CONFIG} asks for; fetch them anew")
