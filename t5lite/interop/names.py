"""The tensors of a folder under the names of their family's table.

In the files a tensor may have an older name (`gamma`), another prefix, or only the name of a tensor that repeats it: a
shared embedding may have the name of the decoder's embedding.
"""

from collections.abc import Collection

import numpy as np

from t5lite.interop.family import Family, Shape
from t5lite.interop.tensors import TensorFolder
from t5lite.system.errors import UserError

CONFIG = "config.json"


class Names:
    """Names of tensors.

    files: {name in the table: name in the files}.
    repeated: [(name in the files, name of the tensor that it repeats)].
    """

    def __init__(self, family: Family, tensors: TensorFolder):
        self._family, self._tensors = family, tensors
        self.files: dict[str, str] = {}
        self.repeated: list[tuple[str, str]] = []
        for file in tensors.tensors:
            name = family.rename(file)
            if name in self.files:
                self.repeated.append((file, self.files[name]))
            else:
                self.files[name] = file
        for other, file in tensors.other_names.items():
            self.files.setdefault(family.rename(other), file)

    def shapes(self, but: str | None = None) -> dict[str, Shape]:
        """Return {name in the table: shape}, without the name `but`. A repeated tensor is there under all its names."""
        shapes = {name: self._tensors.tensors[file].shape for name, file in self.files.items()}
        repeated = {original: shapes[alias] for alias, original in self._family.aliases.items() if alias in shapes}
        return {name: shape for name, shape in {**repeated, **shapes}.items() if name != but}

    def repeats_only(self, name: str) -> bool:
        """Return whether the tensor equals all others that are its copies by the family's aliases."""
        original = self._family.aliases[name]
        copies = [original, *(alias for alias, source in self._family.aliases.items() if source == original)]
        return name in self.files and all(self._equal(name, copy) for copy in copies if copy in self.files)

    def _equal(self, one: str, other: str) -> bool:
        one, other = self.files[one], self.files[other]
        return one == other or np.array_equal(self._tensors.read(one), self._tensors.read(other))

    def resolve(self, wanted: Collection[str]) -> None:
        """Use an alias for a tensor that is missing. wanted: the names that are tensors of their own."""
        for alias, original in self._family.aliases.items():
            if alias in wanted or alias not in self.files:
                continue
            file = self.files[alias]
            if self.files.setdefault(original, file) != file:
                self.repeated.append((file, self.files[original]))

    def check_repetitions(self) -> None:
        """Raise UserError where two names of one tensor have different values."""
        for file, original in self.repeated:
            if not np.array_equal(self._tensors.read(file), self._tensors.read(original)):
                raise UserError(
                    f"{self._tensors.folder}: {file} should repeat {original}, because {CONFIG} ties the two, but they "
                    "differ; fetch the weights anew"
                )

    def missing_error(self, name: str) -> UserError:
        """Return the error for a missing tensor."""
        return UserError(f"{self._tensors.folder}: the weights lack {name}, which {CONFIG} asks for; fetch them anew")
