"""LLaVA in transformers with the published method's rule in torch, timed by stages.

Written from the paper (arXiv 2503.02175, section 3) and from the description of how its authors
run it: features in the dtype of the model, 1 - cosine as the distance, the first token by the
second-smallest distance of its column, and for every further token the rows of all that are
selected gathered and reduced again; nothing is masked. K = round(r * N), raster order kept,
positions counted anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

__all__ = ["Answer", "TransformersLlava", "select_tokens"]


@dataclass(frozen=True)
class Answer:
    """One answer; times in milliseconds."""

    token_ids: list[int]
    kept_indices: list[int] | None
    prompt_tokens: int
    vision: float
    selection: float
    prefill: float
    ttft: float
    decode: list[float]


def select_tokens(features: torch.Tensor, ratio: float) -> torch.Tensor:
    """Indices int64 [K], in the order chosen, of features [N, D]."""
    count = round(ratio * len(features))
    unit = features / features.norm(dim=-1, keepdim=True)
    distances = 1 - unit @ unit.T
    second = torch.topk(distances, 2, dim=0, largest=False).values[1]
    selected = torch.argmax(second)[None]
    while len(selected) < count:
        nearest = torch.index_select(distances, 0, selected).min(dim=0).values
        selected = torch.cat([selected, torch.argmax(nearest)[None]])
    return selected


class TransformersLlava:
    """A checkpoint in transformers, answering greedily without looking at the end of sequence.

    Args:
        checkpoint: A directory.
        device: ``cpu`` or ``cuda``.
        dtype: Of weights and activations.
    """

    def __init__(self, checkpoint: Path, device: str, dtype: torch.dtype) -> None:
        from transformers import LlavaForConditionalGeneration

        self._device, self._dtype = device, dtype
        model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
        self._model = model.to(device).eval()
        self.implementation = self._model.config.text_config._attn_implementation

    @torch.inference_mode()
    def answer(
        self, pixel_values: np.ndarray, ids: np.ndarray, keep: float, max_new_tokens: int
    ) -> Answer:
        """Answer once.

        Args:
            pixel_values: float32 [1, 3, H, W].
            ids: int64 [S], one placeholder for the picture.
            keep: Fraction of visual tokens; 1.0 selects nothing.
            max_new_tokens: Tokens to generate.
        """
        from transformers import DynamicCache

        model, start = self._model, self._now()
        pixels = torch.from_numpy(pixel_values).to(self._device, self._dtype)
        features = self._features(pixels)
        after_vision = self._now()
        kept = None
        if keep < 1:
            kept = torch.sort(select_tokens(features, keep)).values
            features = features[kept]
        after_selection = self._now()
        embeds = self._splice(torch.from_numpy(ids).to(self._device), features)
        cache = DynamicCache(config=model.config.text_config)
        token = self._step(embeds, cache)
        tokens, decode = [int(token)], []
        after_prefill = self._now()
        while len(tokens) < max_new_tokens:
            begin = self._now()
            token = self._step(self._embed(token[None]), cache)
            tokens.append(int(token))
            decode.append((self._now() - begin) * 1000)
        return Answer(
            token_ids=tokens,
            kept_indices=None if kept is None else kept.tolist(),
            prompt_tokens=embeds.shape[1],
            vision=(after_vision - start) * 1000,
            selection=(after_selection - after_vision) * 1000,
            prefill=(after_prefill - after_selection) * 1000,
            ttft=(after_prefill - start) * 1000,
            decode=decode,
        )

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        output = self._model.get_image_features(pixel_values=pixels)
        output = getattr(output, "pooler_output", output)
        features = output[0]
        return features[0] if features.dim() == 3 else features

    def _splice(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        (place,) = torch.nonzero(ids == self._model.config.image_token_index).flatten().tolist()
        before, after = ids[:place], ids[place + 1 :]
        return torch.cat([self._embed(before)[0], features, self._embed(after)[0]])[None]

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self._model.get_input_embeddings()(ids)[None]

    def _step(self, embeds: torch.Tensor, cache: object) -> torch.Tensor:
        hidden = self._model.model.language_model(
            inputs_embeds=embeds, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return torch.argmax(self._model.lm_head(hidden[0, -1]))

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return perf_counter()
