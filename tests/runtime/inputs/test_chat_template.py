"""Chat templates render what transformers renders, and nothing in a question is evaluated."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from divprune.runtime.errors import PromptError
from divprune.runtime.inputs.chat_template import ChatTemplate

VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + ' ' }}
    {%- for content in message['content'] %}
        {%- if content.type == 'image' -%}
            {{ '<image>' }}
        {%- else -%}
            {{ '\\n' + content['text'] }}
        {%- endif %}
    {%- endfor %}
{{ '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set ns = namespace(images=0, first=true) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'][0]['text'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + eos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- for content in message['content'] %}
        {%- if content['type'] == 'image' %}
            {%- set ns.images = ns.images + 1 %}
            {{- "Picture " ~ ns.images ~ ": <image>\\n" }}
        {%- elif content['type'] == 'text' %}
            {{- content['text'] | trim }}
        {%- endif %}
    {%- endfor %}
    {{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

LOOP_CONTROLS = """\
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- for content in message.content %}
        {%- if loop.index > 3 %}{% break %}{% endif %}
        {{- content | tojson }}|{{ content | tojson(indent=2, sort_keys=true) }}
    {%- endfor %}
{%- endfor %}
"""

ODDITIES = """\
{%- set d = dict(role='x', n=1.5) %}
{%- set ns = namespace(seen=[]) %}
{%- generation %}{% set inside = 'lost' %}  kept {% endgeneration -%}
[{{ inside }}][{{ missing_token }}][{{ d | tojson }}][{{ dict.fromkeys(['a', 'b'], 0) }}]
{%- for m in messages if m.role == 'user' %}
  {%- set ns.seen = ns.seen + [m.content | length] %}
{% endfor %}
    {% if true %}
indented blocks leave nothing
    {% endif %}
{{ ns.seen }} {{ tools is none }} {{ documents is none }} {{ messages[-1].content[-1].text[::-1] }}
{{ '<&>"\\'é日' | tojson }} {{ 'é' | tojson(true) }}
{{ [1, {'a': none}] | tojson(separators=(',', ':')) }}
"""

TEMPLATES = {
    "vicuna": VICUNA,
    "chatml": CHATML,
    "llama3": LLAMA3,
    "loop_controls": LOOP_CONTROLS,
    "oddities": ODDITIES,
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
QUESTIONS = [
    "What is in this picture?",
    "naïve 日本語 🐕‍🦺 \u0301 \u2028 <b>&amp;</b>",
    "{{ 7 * 7 }} {% for x in messages %}!{% endfor %} {# gone #} {{ bos_token }}",
    "  spaces \n\n and 'quotes' \"\\n\" ",
]


def ask(question: str, images: int = 1) -> list[dict]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def conversation(question: str) -> list[dict]:
    return [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        *ask(question, images=2),
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": [{"type": "text", "text": question} for _ in range(4)]},
    ]


def render(source: str, messages: list[dict] | None = None, **tokens: str) -> str:
    return ChatTemplate(source, tokens).render(messages or ask("Why?"))


# --- equality with transformers


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_equals_transformers(name, question, add_generation_prompt):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    template = ChatTemplate(TEMPLATES[name], TOKENS)
    for messages in (ask(question), conversation(question)):
        (theirs,), _ = utils.render_jinja_template(
            [messages],
            chat_template=TEMPLATES[name],
            add_generation_prompt=add_generation_prompt,
            **TOKENS,
        )
        assert template.render(messages, add_generation_prompt) == theirs


# --- what templates are given


def test_vicuna_prompt_is_what_llava_was_trained_on():
    assert render(VICUNA, ask("Why?")) == "USER: <image>\nWhy? ASSISTANT:"


def test_jinja_in_a_question_is_not_evaluated():
    assert "{{ 7 * 7 }}" in render(VICUNA, ask("{{ 7 * 7 }}"))


def test_strftime_now_is_the_current_date():
    before = datetime.now().strftime("%Y-%m-%d")
    shown = render("{{ strftime_now('%Y-%m-%d') }}{{ strftime_now(format='') }}")
    assert shown in {before, datetime.now().strftime("%Y-%m-%d")}


def test_undefined_special_token_is_empty_text():
    assert render("[{{ bos_token }}]") == "[]"
    assert render("[{{ bos_token }}]", bos_token="<s>") == "[<s>]"


def test_messages_are_not_changed_by_rendering():
    messages = ask("Why?")
    render(LLAMA3, messages, **TOKENS)
    assert messages == ask("Why?")


# --- errors


def test_raise_exception_shows_the_templates_message():
    with pytest.raises(PromptError, match="Only one image is supported!"):
        render("{{ raise_exception('Only one image is supported!') }}")


@pytest.mark.parametrize(
    "source",
    ["\n{% if %}", "{{ 'a' | no_such_filter }}", "{% endfor %}", "{{ ", "{% nothing %}"],
)
def test_invalid_template_names_the_line(source):
    with pytest.raises(PromptError, match=r"not valid jinja\n.*line \d: "):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ missing.attribute }}",
        "{{ messages[0].content + '!' }}",
        "{{ messages[7].role }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | length }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_failing_template_is_a_prompt_error(source):
    with pytest.raises(PromptError, match="the chat template fails"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1] }}",
        "{{ messages[0].update(role='x') }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ],
)
def test_template_cannot_leave_the_sandbox(source):
    with pytest.raises(PromptError, match="the chat template fails"):
        render(source)


def test_extremely_nested_template_is_a_prompt_error():
    with pytest.raises(PromptError):
        ChatTemplate("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", {})


# --- bounds


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "loops over lists": "{% set l = range(9999)|list %}{% for a in l %}{% for b in l %}"
    "{% for c in l %}{% endfor %}{% endfor %}{% endfor %}",
    "lipsum": "{{ lipsum(n=10000000) }}",
    "slice": "{{ range(9)|slice(9999999999)|list|length }}",
    "repeated text": "{{ 'a' * 10000000000 }}",
    "repeated list": "{{ [1] * 10000000000 }}",
    "doubled by plus": "{% set n = namespace(t='a') %}{% for i in range(60) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}",
    "doubled by tilde": "{% set n = namespace(t='a') %}{% for i in range(60) %}"
    "{% set n.t = n.t ~ n.t %}{% endfor %}",
    "replaced": "{% set n = namespace(t='a') %}{% for i in range(60) %}"
    "{% set n.t = n.t.replace('a', 'aa') %}{% endfor %}",
    "replaced by a filter": "{% set n = namespace(t='a') %}{% for i in range(60) %}"
    "{% set n.t = n.t|replace('a', 'aa') %}{% endfor %}",
    "joined": "{% set t = 'a' * 1000000 %}{{ [t, t, t, t, t, t]|join(t) }}",
    "joined by a method": "{% set t = 'a' * 1000000 %}{{ t.join(['a', 'b', 'c', 'd', 'e', 'f']) }}",
    "padded": "{{ 'a'.ljust(10000000000) }}",
    "centred": "{{ 'a'|center(10000000000) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "format": "{{ '{:9999999999}'.format('a') }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "indented JSON": "{{ [1]|tojson(indent=10**8) }}",
    "separated JSON": "{{ [1, 2]|tojson(separators=('a' * 1000000, ':')) }}",
    "JSON of one list many times": "{% set n = namespace(t=[1]) %}{% for i in range(60) %}"
    "{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.t|tojson }}",
    "text of a loop": "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    "kept text of a loop": "{% set t %}{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}"
    "{% endset %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_without_an_end_is_stopped(name, monkeypatch):
    monkeypatch.setattr("divprune.runtime.inputs.template_limits.MAX_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(PromptError, match=r"the chat template (fails|fills)"):
        ChatTemplate(HOSTILE[name], {}).render([{"role": "user", "content": []}])
    assert time.monotonic() - started < 60  # without an end, on a busy machine


def test_each_rendering_has_its_own_bounds(monkeypatch):
    monkeypatch.setattr("divprune.runtime.inputs.template_limits.MAX_STEPS", 1500)
    template = ChatTemplate("{% for a in range(1000) %}{% endfor %}done", {})
    assert [template.render([]) for _ in range(5)] == ["done"] * 5


def test_bounds_are_far_from_a_long_conversation():
    source = (
        "{% for m in messages %}{{ m['role'] ~ ': ' + m['content'][0]['text'] | trim }}"
        "{{ '%s' % loop.index }}{{ ', '.join(['a', 'b']) | replace('a', 'x') }}{% endfor %}"
    )
    content = [{"type": "text", "text": "word " * 200}]
    messages = [{"role": "user", "content": content}] * 1000
    assert len(ChatTemplate(source, {}).render(messages)) > 900_000
