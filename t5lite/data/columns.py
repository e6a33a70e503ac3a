"""From the columns of a row to texts: by name, or by templates.

    Columns(inputs="question")                                    the pair (row["question"], row["targets"])
    Columns(pair_templates=(("summarize: {text}", "{summary}"),)) the pair ("summarize: " + row["text"], row["summary"])

In a template, {name} stands for the text of a column, and {{ and }} stand for braces. A template contains no code: a
name is only a name. Of several pairs of templates, the index of the row chooses one, the same in every epoch.
"""

import functools
import string
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from t5lite.config import base_config
from t5lite.system.errors import UserError

USUAL = base_config().data.train.columns
ReadColumn = Callable[[str], str]  # the text of a column of a row, by the column's name
ReadList = Callable[[str], list[str] | None]  # the texts of a column that holds a list


class Record(NamedTuple):
    """A row of a source.

    index: the number of the row in its source. place: the file and line, for errors. row: the values by column.
    read: returns the text of a column. read_list: returns the texts of a column that holds a list, else None.
    """

    index: int
    place: str
    row: Mapping[str, Any]
    read: ReadColumn
    read_list: ReadList


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text, or the inputs and targets of pairs; or templates in their place.

    question, context, answers: the columns of questions whose answers are spans of a context.

    text_template: the template of the text. None: the text is the column `text`.
    pair_templates: pairs of templates for inputs and targets. (): inputs and targets are the columns of these names.
    number_step: targets that are numbers are rounded to multiples of this, if they are written as text. None: they are
        not rounded.
    """

    text: str = USUAL.text
    inputs: str = USUAL.inputs
    targets: str = USUAL.targets
    question: str = USUAL.question
    context: str = USUAL.context
    answers: str = USUAL.answers
    text_template: str | None = None
    pair_templates: tuple[tuple[str, str], ...] = ()
    number_step: float | None = None

    def list_text_columns(self) -> list[str]:
        """Return the names of the columns that `make_text` reads."""
        return [self.text] if self.text_template is None else list_names(self.text_template)

    def list_pair_columns(self) -> list[str]:
        """Return the names of the columns that `make_pair` reads for any row."""
        if not self.pair_templates:
            return [self.inputs, self.targets]
        return list(dict.fromkeys(name for pair in self.pair_templates for each in pair for name in list_names(each)))

    def list_input_columns(self) -> list[str]:
        """Return the names of the columns that `make_inputs` reads for any row."""
        templates = [inputs for inputs, _ in self.pair_templates] or [f"{{{self.inputs}}}"]
        return list(dict.fromkeys(name for template in templates for name in list_names(template)))

    def make_text(self, read: ReadColumn) -> str:
        """Return the text of a row."""
        return read(self.text) if self.text_template is None else fill_template(self.text_template, read)

    def make_pair(self, index: int, read: ReadColumn, read_list: ReadList = lambda name: None) -> tuple[str, ...]:
        """Return (inputs, targets) of a row, and more references if a column of the targets is a list.

        Each item of the list makes a reference. The first of them is the targets. Equal references are one reference.

        Args:
            index: the number of the row in its source.
            read_list: (name of a column) -> the texts of its list; None: the column is no list.
        """
        if not self.pair_templates:
            references = read_list(self.targets)
            return read(self.inputs), *([read(self.targets)] if references is None else dict.fromkeys(references))
        inputs, targets = self._choose_templates(index)
        lists = {name: items for name in list_names(targets) if (items := read_list(name)) is not None}
        if len(lists) > 1:
            raise UserError(f"template {targets!r}: the columns {', '.join(map(repr, lists))} are lists; use one list")
        if not lists:
            return fill_template(inputs, read), fill_template(targets, read)
        ((list_name, items),) = lists.items()
        fill = lambda item: fill_template(targets, lambda name: item if name == list_name else read(name))
        return fill_template(inputs, read), *dict.fromkeys(map(fill, items))

    def make_inputs(self, index: int, read: ReadColumn) -> str:
        """Return the inputs of a row, as `make_pair` does."""
        return fill_template(self._choose_templates(index)[0], read) if self.pair_templates else read(self.inputs)

    def _choose_templates(self, index: int) -> tuple[str, str]:
        # A hash, because every 20th pair is held out: they would all have the same template by index % n.
        return self.pair_templates[zlib.crc32(index.to_bytes(8, "little")) % len(self.pair_templates)]

    def facts(self) -> dict[str, Any]:
        """Return the fields for a fingerprint: names of texts and pairs, and all fields with a value of their own."""
        usual, always = Columns(), ("text", "inputs", "targets")
        return {name: value for name, value in asdict(self).items() if name in always or value != getattr(usual, name)}


def list_names(template: str) -> list[str]:
    """Return the names of the columns in a template. Raises UserError for a template that is not well formed."""
    return [name for _, name in _parse(template) if name is not None]


def fill_template(template: str, read: ReadColumn) -> str:
    """Return the template with the texts of the columns."""
    return "".join(text + ("" if name is None else read(name)) for text, name in _parse(template))


@functools.lru_cache  # a template is filled for each row
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """Return the parts of a template: a text, and the column after the text; None: no column."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"template {template!r}: {error}; write {{column}}, and {{{{ or }}}} for a brace") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name or form or conversion):
            raise UserError(f"template {template!r}: only the name of a column may stand in braces")
    return tuple((text, name) for text, name, _, _ in parts)


def read_columns(fields: ConfigDict, train: ConfigDict, where: str) -> Columns:
    """Return the columns and templates of a source.

    Args:
        fields: the group of the source, such as `config.data.validation`. What it does not set comes from `train`.
        train: `config.data.train`.
        where: the path of `fields`, for errors.

    Raises UserError for a template that is not well formed, and for `templates` beside `template`.
    """
    names = {name: (fields.get("columns") or {}).get(name) or train.columns[name] for name in train.columns}
    own, usual = fields.get("template") or {}, train.template
    text_template = own.get("text") or usual.text
    sides = {side: own.get(side) or usual[side] for side in ("inputs", "targets")}
    has_own, has_usual = (any(group.get(side) for side in sides) for group in (own, usual))
    for has_template, templates in ((has_own, fields.get("templates")), (has_usual, train.templates)):
        if has_template and templates is not None:
            raise UserError(f"config.{where}: set template or templates, not both")
    templates = fields.get("templates") or (None if has_own else train.templates)
    single = [tuple(sides[side] or f"{{{names[side]}}}" for side in sides)] if any(sides.values()) else []
    pairs: Sequence[Any] = single if templates is None else templates
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
            raise UserError(f"config.{where}.templates: {pair!r} is not a pair (inputs, targets) of texts; correct it")
    for template in (text_template, *(each for pair in pairs for each in pair)):
        if template is not None and not list_names(template):
            raise UserError(f"config.{where}: the template {template!r} names no column; write for example {{text}}")
    pair_templates = tuple(map(tuple, pairs))
    return Columns(**names, text_template=text_template, pair_templates=pair_templates, number_step=train.number_step)
