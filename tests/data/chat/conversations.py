"""Conversations, templates in the styles of several families, and tokenizers with the marks of these templates."""

import hypothesis.strategies as st

from t5lite.data.chat.encoder import ChatEncoder
from t5lite.data.chat.templates import PRESETS, ChatTemplate
from tests.data.tokenizers.test_tokenizer import OWN

MARKS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|eot|>")
TOKENIZER = type(OWN)(OWN.model, 5, MARKS)

TEMPLATES = {
    "plain": PRESETS["plain"].text,
    "chatml": PRESETS["chatml"].text,
    # A header for each message, white space stripped, BOS in front.
    "headers": """{{- bos_token }}
{%- for message in messages %}
    {{- '<|head|>' + message['role'] + '<|head|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|head|>\\n\\n' }}
{%- endif %}
""",
    # The message of the system is a part of the user's first one. EOS closes the turns of the assistant.
    "folded": """{% if messages[0].role == 'system' %}
{% set lead = messages[0].content + '\\n' %}{% set rest = messages[1:] %}
{% else %}
{% set lead = '' %}{% set rest = messages %}
{% endif %}
{% for message in rest %}
{% if message.role == 'user' %}[ASK] {{ lead if loop.first else '' }}{{ message.content }} [/ASK]
{%- else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}
""",
    # EOS at the end of the whole text, but not between messages.
    "closed": """{% for message in messages %}
{{ '<|' + message.role + '|>' }}
{{ message.content + '<|end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>' }}
{% else %}
{{ eos_token }}
{% endif %}""",
}


def make_encoder(template: str = "plain", tokenizer=TOKENIZER, front: int | None = None) -> ChatEncoder:
    """Return an encoder with a template of TEMPLATES, or with a template's text."""
    text = TEMPLATES.get(template, template)
    return ChatEncoder(tokenizer, ChatTemplate(text, "the template"), front)


def said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Return messages in which user and assistant take turns."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


TEXTS = st.lists(
    st.sampled_from(["sea", " ", "whale", "<", "|", ">", "end|>", "\n", "é", "▁", "user", *MARKS, "</s>", "<pad>", "<|",
                     "<extra_id_0>", "\ufdd0"]),
    max_size=6,
).map("".join)  # fmt: skip
CONVERSATIONS = st.builds(
    lambda system, pairs: said(*(text for pair in pairs for text in pair), system=system),
    st.none() | TEXTS,
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
)
