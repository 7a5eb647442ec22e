"""transformers on the same checkpoint, fed the rows that a selection keeps.

It shares nothing with the runtime but the checkpoint: pixels come from transformers' own image
processors, features and packing from its models, kept rows from the NumPy reference of the
selection, and a decoder of its own loop gives the answer. A family adds how its pictures and
videos become features.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from divprune.export.selection import get_selector
from divprune.runtime.directory.keep import kept_count

__all__ = ["Answer", "Media", "Reference", "messages_about", "two_turns"]

Media = Sequence[Image.Image | tuple[Image.Image, ...]]
"""Pictures, and videos as tuples of the frames that are taken, in the order of the prompt."""


@dataclass(frozen=True)
class Answer:
    """Greedy ids, and for each picture or video the kept indices, ascending, and N."""

    token_ids: list[int]
    kept: list[list[int]]
    num_tokens: list[int]


def messages_about(media: Sequence[Any], prompt: str, *, keys: bool) -> list[dict[str, Any]]:
    """One question behind pictures and videos; ``keys`` puts them into their parts."""
    parts = []
    for each in media:
        kind = "image" if isinstance(each, Image.Image) else "video"
        parts.append({"type": kind, **({kind: each} if keys else {})})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


def two_turns(images: Sequence[Image.Image], prompt: str, *, keys: bool) -> list[dict[str, Any]]:
    """A question about the first of two pictures, its answer, and one about the second."""
    reply = {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]}
    first, second = (messages_about([each], prompt, keys=keys) for each in images)
    return [*first, reply, *second]


class Reference(ABC):
    """One checkpoint in transformers, in float32.

    Args:
        checkpoint: Its directory.
    """

    def __init__(self, checkpoint: Path) -> None:
        auto_model: Any = transformers.AutoModelForImageTextToText
        self.model: Any = auto_model.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self.template = _template(checkpoint)
        self.checkpoint = checkpoint

    @abstractmethod
    def features(self, media: Media) -> list[torch.Tensor]:
        """The visual tokens [N, hidden] of each picture and video of one request."""

    def expand(self, text: str, media: Media, counts: Sequence[int]) -> str:
        """The rendered prompt with as many placeholders as there are visual tokens."""
        for each, count in zip(media, counts, strict=True):
            token = self._placeholder(each)
            head, found, tail = text.partition(token)
            assert found
            text = head + "\0" * count + tail
        for each, count in zip(media, counts, strict=True):
            text = text.replace("\0" * count, self._placeholder(each) * count, 1)
        return text

    @property
    def decoder(self) -> Any:
        """The language model without its output layer."""
        return self.model.model.language_model

    def template_for(self, media: Media) -> str:
        """The chat template of a conversation about ``media``."""
        del media
        return self.template

    def positions(self, ids: torch.Tensor, media: Media) -> torch.Tensor:
        """Positions of the unpruned prompt: [L], or [3, L]."""
        del media
        return torch.arange(len(ids))

    def decoder_inputs(self, is_visual: torch.Tensor, kept: Sequence[np.ndarray]) -> dict[str, Any]:
        """What the decoder takes beside rows [S]; ``kept`` are the tokens of each medium."""
        del is_visual, kept
        return {}

    def answer(
        self, media: Media, prompt: str, keep: float, new_tokens: int, positions: str = "contiguous"
    ) -> Answer:
        """Greedy ids when each picture's and video's kept rows alone are fed."""
        messages = messages_about(media, prompt, keys=False)
        return self.answer_messages(messages, media, keep, new_tokens, positions)

    def answer_messages(
        self,
        messages: list[dict[str, Any]],
        media: Media,
        keep: float,
        new_tokens: int,
        positions: str = "contiguous",
    ) -> Answer:
        """The same for a conversation, whose pictures and videos are ``media``."""
        with torch.no_grad():
            features = self.features(media)
        ids = self.prompt_ids(messages, media, [len(each) for each in features])
        embeds = self.model.get_input_embeddings()(ids).detach()
        is_visual = torch.isin(ids, torch.tensor(self.visual_ids()))
        embeds[is_visual] = torch.cat(features)
        kept = [kept_indices(each, keep) for each in features]
        stays = ~is_visual
        stays[is_visual] = torch.cat(
            [_mask(k, len(f)) for k, f in zip(kept, features, strict=True)]
        )
        places = self.positions(ids, media)
        following = int(places.max()) + 1
        places = places[..., stays]
        if positions == "contiguous":
            places, following = torch.arange(int(stays.sum())), int(stays.sum())
        more = self.decoder_inputs(is_visual[stays], kept)
        answer = self._decode(embeds[stays], places, following, new_tokens, more)
        return Answer(answer, [each.tolist() for each in kept], [len(each) for each in features])

    def prompt_ids(
        self, messages: list[dict[str, Any]], media: Media, counts: Sequence[int]
    ) -> torch.Tensor:
        """Ids [L] of the prompt with every visual token in it."""
        text = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.template_for(media),
            tokenize=False,
            add_generation_prompt=True,
        )
        bos = self.tokenizer.bos_token
        with_specials = bos is None or not text.startswith(bos)
        expanded = self.expand(text, media, counts)
        ids = self.tokenizer(expanded, add_special_tokens=with_specials)["input_ids"]
        return torch.tensor(ids)

    def _decode(
        self,
        rows: torch.Tensor,
        positions: torch.Tensor,
        position: int,
        count: int,
        more: dict[str, Any],
    ) -> list[int]:
        """``count`` greedy ids after ``rows``; the first of them stands at ``position``."""
        embeds, cache, ids = rows[None], transformers.DynamicCache(), []
        positions = positions[..., None, :]
        while len(ids) < count:
            filled = cache.get_seq_length() + embeds.shape[1]
            with torch.no_grad():
                outputs = self.decoder(
                    inputs_embeds=embeds,
                    position_ids=positions,
                    # Without a mask, transformers takes gaps for the borders of packed texts.
                    attention_mask=torch.ones(1, filled, dtype=torch.long),
                    past_key_values=cache,
                    **more,
                )
                more = {}
                logits = self.model.lm_head(outputs.last_hidden_state[0, -1])
            ids.append(int(logits.argmax()))
            embeds = self.model.get_input_embeddings()(torch.tensor([[ids[-1]]]))
            positions = torch.full((*positions.shape[:-1], 1), position)
            position += 1
        return ids

    def _placeholder(self, medium: Any) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.visual_ids()[_is_video(medium)]))

    def visual_ids(self) -> list[int]:
        """Placeholders of a picture and of a video."""
        config = self.model.config
        return [config.image_token_id, getattr(config, "video_token_id", config.image_token_id)]


def kept_indices(features: torch.Tensor, keep: float) -> np.ndarray:
    """What DivPrune keeps of [N, hidden], ascending."""
    if keep == 1:
        return np.arange(len(features))
    count = kept_count(keep, len(features))
    return np.sort(get_selector("divprune").select(features.numpy(), count))


def _mask(indices: np.ndarray, count: int) -> torch.Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.from_numpy(indices)] = True
    return mask


def _is_video(medium: Any) -> bool:
    return not isinstance(medium, Image.Image)


def _template(checkpoint: Path) -> str:
    jinja = checkpoint / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    content = json.loads((checkpoint / "chat_template.json").read_text(encoding="utf-8"))
    return str(content["chat_template"])
