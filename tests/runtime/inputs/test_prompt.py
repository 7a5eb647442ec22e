"""Prompts equal those of transformers' LlavaProcessor; wrong placeholders are explained."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.errors import PromptError
from divprune.runtime.inputs.chat_template import ChatTemplate
from divprune.runtime.inputs.prompt import Prompt, build_prompt, expand_prompt
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


def build(question: str, num_images: int, kind: str = "metaspace", template: str = ""):
    template, tokenizer, image = parts(kind, template or TEMPLATES[kind])
    return build_prompt(question, num_images, template, tokenizer, image), image


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
    ours = expand_prompt(prompt, [9] * num_images, image)
    assert ours.tolist() == theirs[0]
    assert ours.tolist().count(image) == 9 * num_images


# --- build_prompt


def test_prompt_holds_its_text_and_where_the_images_stand():
    prompt, image = build("Why?", 2)
    assert prompt.text == "USER: <image>\n<image>\nWhy? ASSISTANT:"
    assert len(prompt.image_positions) == 2
    assert [prompt.ids[place] for place in prompt.image_positions] == [image, image]
    assert list(prompt.image_positions) == sorted(prompt.image_positions)
    assert prompt.ids.count(image) == 2


def test_prompt_without_images_is_plain_text():
    prompt, image = build("Why?", 0)
    assert prompt.image_positions == ()
    assert image not in prompt.ids


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
    with pytest.raises(PromptError, match=r"question itself contains .*'<image>'") as caught:
        build("What does <image> mean?", 1, kind)
    assert caught.value.expected == "1 image tokens in the prompt"
    assert caught.value.found == "2 image tokens in the prompt"


@pytest.mark.parametrize(
    "template, found",
    [
        ("{{ messages[0].content[-1].text }}", 0),
        ("<image>{{ messages[0].content[-1].text }}", 1),
        ("{{ messages[0].content }}", 0),
    ],
)
def test_template_that_ignores_images_is_explained(template, found):
    with pytest.raises(PromptError, match="the chat template does not write one") as caught:
        build("Why?", 2, template=template)
    assert caught.value.found == f"{found} image tokens in the prompt"


def test_image_token_that_the_tokenizer_lacks_is_explained():
    template, tokenizer, _ = parts("metaspace", TEMPLATES["metaspace"])
    with pytest.raises(PromptError, match="the tokenizer has no token 32000"):
        build_prompt("Why?", 1, template, tokenizer, 32_000)


def test_refusal_of_the_template_is_passed_on():
    with pytest.raises(PromptError, match="one image only"):
        build("Why?", 2, template="{{ raise_exception('one image only') }}")


# --- expand_prompt


def test_each_image_token_is_repeated_by_its_own_count():
    prompt = Prompt("", (5, 9, 6, 9, 7), (1, 3))
    ids = expand_prompt(prompt, [3, 1], 9)
    assert ids.dtype == np.int64
    assert ids.tolist() == [5, 9, 9, 9, 6, 9, 7]


def test_prompt_without_images_expands_to_itself():
    assert expand_prompt(Prompt("", (5, 6), ()), [], 9).tolist() == [5, 6]


@pytest.mark.parametrize("counts", [[], [3], [3, 1, 1], [3, 0], [-1, 2]])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="2 images"):
        expand_prompt(Prompt("", (5, 9, 6, 9, 7), (1, 3)), counts, 9)


def test_another_image_token_is_refused():
    with pytest.raises(ValueError, match="not the image token"):
        expand_prompt(Prompt("", (5, 9), (1,)), [2], 8)
