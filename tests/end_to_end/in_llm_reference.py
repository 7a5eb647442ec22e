"""transformers with visual tokens taken out in front of a decoder layer.

Blocks of transformers run layer after layer over prompt and answer, without a cache. Features,
prompts and positions are those of a family's `Reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tests.end_to_end.reference import Answer, Media, Reference, messages_about

__all__ = ["Choose", "answer_inside"]

Choose = Callable[..., list[int]]
"""From states [N, hidden] of the visual tokens of a picture, the last row's state [hidden] and its
attention [heads, N] in the layer before to the tokens that are kept."""


@dataclass(frozen=True)
class _Rows:
    """A sequence: rows [S, hidden], positions [S] or [3, S], and what layers add [S, hidden]."""

    rows: torch.Tensor
    positions: torch.Tensor
    planes: tuple[torch.Tensor, ...]

    def only(self, stays: torch.Tensor) -> _Rows:
        planes = tuple(plane[stays] for plane in self.planes)
        return _Rows(self.rows[stays], self.positions[..., stays], planes)

    def followed_by(self, rows: torch.Tensor) -> _Rows:
        """Text behind it."""
        first = int(self.positions.max()) + 1
        places = torch.arange(first, first + len(rows)).expand(*self.positions.shape[:-1], -1)
        nothing = torch.zeros_like(rows)
        return _Rows(
            torch.cat([self.rows, rows]),
            torch.cat([self.positions, places], dim=-1),
            tuple(torch.cat([plane, nothing]) for plane in self.planes),
        )


def answer_inside(
    reference: Reference,
    media: Media,
    prompt: str,
    layer: int,
    choose: Choose,
    answer: Sequence[int],
) -> Answer:
    """Kept indices where ``choose`` says, in front of ``layer``, what stays of each medium.

    Its ids are the greedy choice behind the prompt and behind each token of ``answer`` but the
    last: they are ``answer`` where that is what greedy decoding gives.
    """
    decoder = reference.decoder
    decoder.set_attn_implementation("eager")  # the only one that returns weights
    with torch.no_grad():
        features = reference.features(media)
        counts = [len(each) for each in features]
        ids = reference.prompt_ids(messages_about(media, prompt, keys=False), media, counts)
        is_visual = torch.isin(ids, torch.tensor(reference.visual_ids()))
        rows = _embed(reference, ids, is_visual, features, media)
        state, attention = _through(decoder, rows, range(layer))
        spans = is_visual.nonzero()[:, 0].split(counts)
        kept = [sorted(choose(state[s], state[-1], attention[:, -1, s])) for s in spans]
        stays = ~is_visual
        for span, places in zip(spans, kept, strict=True):
            stays[span[places]] = True
        table = reference.model.get_input_embeddings()
        whole = rows.followed_by(table(torch.tensor(answer[:-1], dtype=torch.long)))
        stays = torch.cat([stays, torch.ones(len(answer) - 1, dtype=torch.bool)])
        state, _ = _through(decoder, whole, range(layer))
        behind = _Rows(state, whole.positions, whole.planes).only(stays)
        state, _ = _through(decoder, behind, range(layer, len(decoder.layers)))
        logits = reference.model.lm_head(decoder.norm(state[-len(answer) :]))
    return Answer(logits.argmax(dim=-1).tolist(), kept, counts)


def _embed(
    reference: Reference,
    ids: torch.Tensor,
    is_visual: torch.Tensor,
    features: list[torch.Tensor],
    media: Media,
) -> _Rows:
    rows = reference.model.get_input_embeddings()(ids)
    rows[is_visual] = torch.cat(features)
    everything = [torch.arange(len(each)).numpy() for each in features]
    more = reference.decoder_inputs(is_visual, everything)
    planes = []
    for visual in more.get("deepstack_visual_embeds", ()):
        planes.append(torch.zeros_like(rows))
        planes[-1][is_visual] = visual
    return _Rows(rows, reference.positions(ids, media), tuple(planes))


def _through(decoder: Any, rows: _Rows, layers: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows behind some layers, and the attention [heads, S, S] of the last of them."""
    hidden = rows.rows
    mask = torch.full((len(hidden), len(hidden)), -math.inf).triu(1)[None, None]
    rope = decoder.rotary_emb(hidden[None], rows.positions[..., None, :])
    weights: list[torch.Tensor] = []
    for number in layers:
        block = decoder.layers[number]
        hook = block.self_attn.register_forward_hook(lambda *args: weights.append(args[2][1][0]))
        hidden = block(hidden[None], attention_mask=mask, position_embeddings=rope)[0]
        hook.remove()
        if number < len(rows.planes):
            hidden = hidden + rows.planes[number]
    return hidden, weights[-1]
