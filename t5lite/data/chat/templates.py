"""Chat templates: those that come with t5lite, and where the template of a run comes from.

A template is Jinja, as in transformers. It writes the messages of a conversation as one text, with marks around them:

    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]

    plain     <|user|>Hi<|end|><|assistant|>Hello!<|end|>
    chatml    <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello!<|im_end|>⏎

The generation prompt is the text after which the model answers: <|assistant|> in `plain`.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from t5lite.data.tokenizers.release_files import read_template_file
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError, nearest

DEFAULT = "plain"


class Preset(NamedTuple):
    """A template, and the special tokens that it needs."""

    text: str
    marks: tuple[str, ...]


PRESETS = {
    "plain": Preset(
        "{% for message in messages %}"
        "{% if message.role not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('there is no role ' ~ message.role ~ ', only system, user and assistant') }}"
        "{% endif %}"
        "{{ '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "chatml": Preset(
        "{% for message in messages %}"
        "{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
}


class ChatTemplate(NamedTuple):
    """The text of a template, and what errors call it."""

    text: str
    where: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def choose_template(field: str | None, tokenizer: TextTokenizer) -> ChatTemplate:
    """Return the template of a run: that of the config, else that of the tokenizer, else `plain`.

    field: config.tokenizer.chat_template: the name of a preset, or the path of a file. Raises UserError for neither.
    """
    if field is None and tokenizer.chat_template is not None:
        return ChatTemplate(tokenizer.chat_template, "the tokenizer's chat template")
    name = DEFAULT if field is None else field
    if name in PRESETS:
        return ChatTemplate(PRESETS[name].text, f"the chat template {name}")
    if not os.path.isfile(name):
        raise UserError(
            f"config.tokenizer.chat_template: {name} is neither a file nor a known template; {nearest(name, PRESETS)}"
        )
    return ChatTemplate(read_template_file(Path(name)), f"the chat template {name}")


def list_marks(field: str | None, has_own: bool) -> tuple[str, ...]:
    """Return the special tokens that a tokenizer needs for a template of t5lite; () for another template.

    Args:
        field: config.tokenizer.chat_template.
        has_own: whether the tokenizer comes with a template.
    """
    if field is None:
        return () if has_own else PRESETS[DEFAULT].marks
    return PRESETS[field].marks if field in PRESETS else ()
