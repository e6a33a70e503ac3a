"""A template is a stranger's program: it ends in time, in bounded memory, and every fault is one clear line."""

import time

import pytest

from t5lite.data.chat.renderer import Limits, Renderer
from t5lite.system.errors import UserError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHORT = Limits(seconds=1, length=10_000)
NESTED = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}"
)


def render(template, messages=MESSAGES, prompts=(), asks=False, limits=SHORT, **variables):
    return Renderer(template, "the template", variables, limits).render(messages, prompts, asks)


def test_a_conversation_is_rendered_as_transformers_renders_it():
    template = """{% for message in messages %}
  {% if message.role == 'user' %}
{{ bos_token }}{{ message.content }}
  {% else %}
    {%- generation %}{{ message['content'] }}{% endgeneration %}
  {% endif %}
  {% if loop.last %}{% break %}{% endif %}
{% endfor %}{{ nothing }}{{ tools is none }}{% if add_generation_prompt %}?{% endif %}"""
    assert render(template, bos_token="<s>").text == "<s>hi\nyoTrue"
    assert render(template, bos_token="<s>", asks=True).text == "<s>hi\nyoTrue?"
    assert render("{{ messages[0] | tojson }}").text == '{"role": "user", "content": "hi"}'
    assert render("{{ strftime_now('%Y') }}").text == time.strftime("%Y")


def test_the_text_before_a_message_is_measured():
    template = "{% for m in messages %}{{ m.role[0] ~ ':' ~ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}a:{% endif %}"
    rendered = render(template, [*MESSAGES, *MESSAGES], prompts=[1, 3])
    assert rendered.text == "u:hia:you:hia:yo"
    assert [rendered.text[:start] for start in rendered.starts] == ["u:hia:", "u:hia:you:hia:"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NESTED, "takes more than 1 seconds"),
        ("{{ 10 ** (10 ** 9) }}", "takes more than 1 seconds"),
        ("{{ 'x' * 10 ** 12 }}", "needs too much memory"),
        ("{{ 'x'.ljust(10 ** 11) }}", "needs too much memory"),
        (DOUBLED, "needs too much memory"),
        ("{% for i in range(20000) %}x{% endfor %}", "makes a text of more than 10,000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails in line 1: RecursionError"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "RecursionError"),
    ],
)
def test_a_template_without_end_ends(template, message):
    start = time.monotonic()
    with pytest.raises(UserError, match=f"^the template .*{message}"):
        render(template)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if %}", r"is not valid Jinja \(line 2\): Expected an expression"),
        ("{% unknown %}", r"is not valid Jinja \(line 1\)"),
        ("\n{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("\n\n{{ messages[5].content }}", "fails in line 3: UndefinedError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ namespace(__class__=1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
    ],
)
def test_a_fault_of_a_template_is_one_line(template, message):
    with pytest.raises(UserError, match=f"^the template {message}|^the template fails.*{message}"):
        render(template)


def test_a_prefix_that_changes_is_named_by_its_message():
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(
        UserError, match=r"does not preserve prefixes: .* message 4 \(assistant\) .* after 0 characters"
    ):
        render(template, [*MESSAGES, *MESSAGES], prompts=[3])


def test_a_renderer_goes_on_after_a_rendering_that_took_too_long():
    renderer = Renderer("{% if messages[0].content == 'x' %}" + NESTED + "{% endif %}ok", "the template", {}, SHORT)
    with pytest.raises(UserError, match="takes more than"):
        renderer.render([{"role": "user", "content": "x"}], [], False)
    assert renderer.render(MESSAGES, [], False).text == "ok"
