"""Prompts in the form of one model: its chat templates, its tokenizer and its placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from divprune.runtime.errors import PromptError
from divprune.runtime.inputs.chat_template import ChatTemplate, read_template
from divprune.runtime.inputs.messages import question, read_messages
from divprune.runtime.inputs.prompt import Expansion, Prompt, build_prompt

if TYPE_CHECKING:
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.families import MediaKind
    from divprune.runtime.inputs.messages import Conversation
    from divprune.runtime.inputs.tokenization import TextTokenizer

__all__ = ["PromptWriter"]


class PromptWriter:
    """Writes conversations as the token ids that a model expects.

    Args:
        directory: Has the chat template, and another one for videos where the model has it.
        placeholders: What the templates write where a picture or video stands.
        tokenizer: The model's tokenizer.

    Raises:
        EngineDirectoryError: if a template cannot be read.
    """

    def __init__(
        self,
        directory: EngineDirectory,
        placeholders: Mapping[MediaKind, str],
        tokenizer: TextTokenizer,
    ) -> None:
        model = directory.manifest.model
        template = read_template(directory.file("chat_template.jinja"))
        specials = tokenizer.special_tokens
        self._template = ChatTemplate(template, specials)
        self._video_template = ChatTemplate(model.facts.get("video_template") or template, specials)
        self._placeholders = placeholders
        self._tokenizer = tokenizer
        self._visual_token_ids = model.visual_token_ids

    def write(self, conversation: Conversation, media: Sequence[Expansion]) -> Prompt:
        """Write a conversation whose pictures and videos stand for as many tokens as ``media`` say.

        Raises:
            PromptError: as ``build_prompt``.
        """
        has_video = any(medium.kind == "video" for medium in conversation.media)
        return build_prompt(
            conversation,
            media,
            self._placeholders,
            self._video_template if has_video else self._template,
            self._tokenizer,
            self._visual_token_ids,
        )

    def turn_ends(
        self, conversation: Conversation, media: Sequence[Expansion], prompt: Prompt
    ) -> list[int]:
        """Rows at which the answers that are part of a conversation begin, ascending.

        An answer before which the template writes something else once more has been said is left
        out: the prompt that it answered is no beginning of this one.

        Args:
            conversation: The messages.
            media: What stands for each of its pictures and videos.
            prompt: What ``write`` made of them.
        """
        ends = []
        for place, message in enumerate(conversation.messages):
            if message["role"] != "assistant" or place == 0:
                continue
            before = conversation.until(place)
            try:
                ids = self.write(before, media[: len(before.media)]).ids
            except PromptError:  # a template may want its messages otherwise: nobody asked this
                continue
            if len(ids) < len(prompt.ids) and np.array_equal(ids, prompt.ids[: len(ids)]):
                ends.append(len(ids))
        return ends

    def question_ids(self, text: str, num_images: int) -> list[int]:
        """Token ids of a question whose pictures have one visual token each.

        Separators inside a picture are not among them: how many there are depends on its size.

        Raises:
            PromptError: if the prompt cannot be built.
        """
        conversation = read_messages(question(text, ["picture"] * num_images))
        stand_in = _OneToken(self._placeholders["image"])
        ids: list[int] = self.write(conversation, [stand_in] * num_images).ids.tolist()
        return ids


class _OneToken:
    """A picture of one visual token, where only the text around it counts."""

    kind: Literal["image"] = "image"
    runs = (1,)

    def __init__(self, text: str) -> None:
        self.text = text
