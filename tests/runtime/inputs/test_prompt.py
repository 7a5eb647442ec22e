"""Prompts equal those of transformers' LlavaProcessor; wrong placeholders are explained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.errors import PromptError
from divprune.runtime.inputs.chat_template import ChatTemplate
from divprune.runtime.inputs.messages import question as messages_of
from divprune.runtime.inputs.messages import read_messages
from divprune.runtime.inputs.prompt import Prompt, build_prompt
from divprune.runtime.inputs.tokenization import TextTokenizer
from tests.runtime.tokenizers_for_tests import KINDS, make_tokenizer

TEMPLATES = {
    "byte_level": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% for content in message['content'] %}"
        "{{ '<image>\n' if content['type'] == 'image' else content['text'] }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "metaspace": (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for content in message['content'] %}"
        "{{ '<image>\n' if content['type'] == 'image' else content['text'] + ' ' }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
}
# A template that writes the BOS itself, and one that sets the pictures side by side.
TEMPLATES["bos"] = "{{ bos_token }}" + TEMPLATES["metaspace"]
TEMPLATES["adjacent"] = TEMPLATES["metaspace"].replace("<image>\n", "<image>")
CASES = [(kind, kind) for kind in KINDS] + [("metaspace", "bos"), ("metaspace", "adjacent")]
QUESTIONS = [
    "What is in this picture?",
    "  naïve 日本語 🐕‍🦺 ",
    "{{ 7 * 7 }}\n<s> and </s> <|im_end|>",
]


def parts(kind: str, template: str) -> tuple[ChatTemplate, TextTokenizer, int]:
    raw, names = make_tokenizer(kind)
    return ChatTemplate(template, names), TextTokenizer(raw, names), raw.token_to_id("<image>")


@dataclass(frozen=True)
class Medium:
    """What stands in a prompt for a picture."""

    kind: str = "image"
    text: str = "<image>"
    runs: tuple[int, ...] = (9,)


def build(
    question: str,
    media: int | list[Medium],
    kind: str = "metaspace",
    template: str = "",
) -> tuple[Prompt, int]:
    template, tokenizer, image = parts(kind, template or TEMPLATES[kind])
    media = [Medium()] * media if isinstance(media, int) else media
    conversation = read_messages(messages_of(question, ["picture.png"] * len(media)))
    placeholders = {"image": "<image>"}
    return build_prompt(conversation, media, placeholders, template, tokenizer, [image]), image


# --- equality with transformers


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("kind, template", CASES)
def test_expanded_ids_equal_llava_processor(kind, template, num_images, question):
    transformers = pytest.importorskip("transformers")
    raw, names = make_tokenizer(kind)
    side = {"height": 12, "width": 12}
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size=side),
        transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **names),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATES[template],
    )
    picture = Image.new("RGB", (20, 16))
    content = [{"type": "image", "image": picture}] * num_images
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]

    prompt, image = build(question, num_images, kind, TEMPLATES[template])
    assert prompt.ids.tolist() == theirs[0]
    assert prompt.ids.tolist().count(image) == 9 * num_images


# --- build_prompt


def test_prompt_holds_its_text_and_where_the_pictures_stand():
    prompt, image = build("Why?", [Medium(runs=(3,)), Medium(runs=(2,))])
    assert prompt.text == "USER: <image>\n<image>\nWhy? ASSISTANT:"
    assert [len(rows) for rows in prompt.spans] == [3, 2]
    assert (prompt.ids[np.concatenate(prompt.spans)] == image).all()
    assert np.flatnonzero(prompt.is_visual).tolist() == np.concatenate(prompt.spans).tolist()
    assert prompt.num_text_tokens == len(prompt.ids) - 5
    assert prompt.ids.dtype == np.int64


def test_prompt_without_pictures_is_plain_text():
    prompt, image = build("Why?", 0)
    assert prompt.spans == ()
    assert image not in prompt.ids.tolist()


def test_a_picture_of_several_runs_has_its_text_between_them():
    prompt, _ = build("Why?", [Medium(text="<image>, then <image>.", runs=(2, 3))])
    assert prompt.text == "USER: <image>, then <image>.\nWhy? ASSISTANT:"
    (rows,) = prompt.spans
    assert len(rows) == 5
    assert rows[2] - rows[1] > 1, "text lies between the runs"
    alone, _ = build("Why?", [Medium(runs=(5,))])
    assert prompt.num_text_tokens > alone.num_text_tokens


@pytest.mark.parametrize("question", ["", " ", "\n\t "])
def test_empty_question_is_an_error_that_shows_how_to_ask(question):
    with pytest.raises(PromptError, match="the question is empty") as caught:
        build(question, 1)
    assert "--prompt" in caught.value.fix


def test_question_that_is_not_unicode_is_an_error():
    with pytest.raises(PromptError, match="not valid Unicode"):
        build(b"caf\xe9".decode("utf-8", "surrogateescape"), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_placeholder_in_the_question_is_explained(kind):
    with pytest.raises(PromptError, match=r"question itself contains .*'<image>'"):
        build("What does <image> mean?", 1, kind)


@pytest.mark.parametrize(
    "template, found",
    [
        ("{{ messages[0].content[-1].text }}", 0),
        ("<image>{{ messages[0].content[-1].text }}", 1),
        ("{{ messages[0].content }}", 0),
    ],
)
def test_template_that_ignores_pictures_is_explained(template, found):
    with pytest.raises(PromptError, match="the chat template does not write one") as caught:
        build("Why?", 2, template=template)
    assert caught.value.expected == "2 in the prompt"
    places = "messages[0].content[0] (user), messages[0].content[1] (user)"
    assert caught.value.found == f"{found} in the prompt, of {places}"


def test_visual_token_that_the_tokenizer_lacks_is_explained():
    template, tokenizer, _ = parts("metaspace", TEMPLATES["metaspace"])
    conversation = read_messages(messages_of("Why?", ["picture.png"]))
    with pytest.raises(PromptError, match="not read the placeholders"):
        build_prompt(conversation, [Medium()], {"image": "<image>"}, template, tokenizer, [32_000])


def test_a_kind_that_the_family_does_not_take_is_refused():
    with pytest.raises(PromptError, match="this model takes no videos"):
        build("Why?", [Medium(kind="video")])


def test_refusal_of_the_template_is_passed_on():
    with pytest.raises(PromptError, match="one image only"):
        build("Why?", 2, template="{{ raise_exception('one image only') }}")
