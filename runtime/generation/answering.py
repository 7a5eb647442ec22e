"""One question from its pictures to the choice of the first token.

messages ─► media prepared ─► prompt ─► vision graph ─► kept tokens ─► pruned rows ─► prefill
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from divprune.runtime.directory.limits import answer_limit
from divprune.runtime.generation.generation import Generation, InterruptedAnswerError, Prefill
from divprune.runtime.generation.kept_tokens import take_kept
from divprune.runtime.generation.prefix import row_keys
from divprune.runtime.generation.processors import make_processor
from divprune.runtime.generation.result import ImageResult
from divprune.runtime.generation.rows import prune_prompt
from divprune.runtime.generation.sampling import Sampler
from divprune.runtime.generation.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from divprune.runtime.backends import Backend
    from divprune.runtime.directory.manifest import Manifest
    from divprune.runtime.families import Family, Prepared
    from divprune.runtime.generation.generation_config import TokenRules
    from divprune.runtime.generation.kept_tokens import KeepRule, KeptTokens
    from divprune.runtime.generation.media_encoder import MediaEncoder, PreparedMedium
    from divprune.runtime.generation.prefiller import Prefiller, Started
    from divprune.runtime.generation.rows import PromptRows
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.inputs.messages import Conversation
    from divprune.runtime.inputs.prompt import Prompt
    from divprune.runtime.inputs.prompt_writer import PromptWriter
    from divprune.runtime.inputs.tokenization import TextTokenizer

__all__ = ["Answering"]


class Answering:
    """Begins answers, one at a time: they share one KV cache.

    Args:
        manifest: Manifest of the engine directory.
        family: Says where the rows of pictures stand.
        backend: Whose name goes into the results.
        encoder: From pictures to features.
        prompts: From conversations to token ids.
        tokenizer: From token ids to text.
        prefiller: From rows to the first token.
        rules: Of the model's generation config.
    """

    def __init__(
        self,
        manifest: Manifest,
        family: Family,
        backend: Backend,
        encoder: MediaEncoder,
        prompts: PromptWriter,
        tokenizer: TextTokenizer,
        prefiller: Prefiller,
        rules: TokenRules,
    ) -> None:
        self._manifest, self._family, self._backend = manifest, family, backend
        self._encoder, self._prompts, self._prefiller = encoder, prompts, prefiller
        self._tokenizer, self._rules = tokenizer, rules

    def begin(
        self,
        conversation: Conversation,
        rule: KeepRule,
        sampling: SamplingOptions,
        stop: Sequence[str],
        *,
        max_new_tokens: int,
        ignore_eos: bool,
        num_frames: int | None,
        fps: float | None,
        scope: Hashable,
        interrupted: Callable[[], bool],
    ) -> Generation:
        """Everything up to the choice of the first token; arguments and errors of ``chat``."""
        opened = [self._encoder.open(medium, fps) for medium in conversation.media]
        clock = Stopwatch()
        num_pictures = conversation.num_pictures
        media = [
            self._encoder.prepare(each, num_media=num_pictures, num_frames=num_frames, scope=scope)
            for each in opened
        ]
        prompt = self._prompts.write(conversation, [each.prepared for each in media])
        self._check_fits(prompt, media, rule)
        clock.lap("preprocess")
        kept = self._encode(media, rule, interrupted)
        clock.lap("vision")
        _add_earlier_time(clock.laps, media)
        rows = self._prune(prompt, media, kept)
        limit = self._answer_limit(rows, max_new_tokens)
        sampler = Sampler(sampling, make_processor(self._rules, sampling, prompt.ids, limit))
        if self._manifest.selector.inside_llm and media:
            started = self._prefiller.prefill_pruned(rows, kept, rule, sampler, clock)
        else:
            places = [each.indices.tolist() for each in kept]
            keys = row_keys(rows, [each.digest for each in media], places, scope)
            turns = self._turn_ends(conversation, media, prompt, rows)
            started = self._prefiller.prefill(rows, kept, keys, sampler, clock, scope, turns)
        return Generation(
            self._record(rows, media, num_pictures, started, clock),
            step=started.step,
            sampler=sampler,
            stream=self._tokenizer.stream(),
            eos_token_ids=() if ignore_eos else self._rules.eos_token_ids,
            limit=limit,
            stop=stop,
            interrupted=interrupted,
        )

    def _check_fits(self, prompt: Prompt, media: Sequence[PreparedMedium], rule: KeepRule) -> None:
        """Refuse a prompt that is too long before the vision graph runs, where that is known."""
        counts = [rule.count(each.prepared.num_tokens) for each in media]
        if isinstance(rule.keep, float) or rule.keep is None:
            inside = self._manifest.selector.inside_llm
            visual = int(prompt.is_visual.sum()) if inside else sum(counts)
            total = prompt.num_text_tokens + visual
            answer_limit(
                self._manifest,
                max_new_tokens=1,
                prompt_tokens=total,
                num_visual=visual,
                next_position=total,
            )

    def _encode(
        self, media: Sequence[PreparedMedium], rule: KeepRule, interrupted: Callable[[], bool]
    ) -> list[KeptTokens]:
        """The tokens of each medium that enter the LLM.

        All of them for a selection inside it: the layers in front process them.
        """
        inside = self._manifest.selector.inside_llm
        kept = []
        for medium in media:
            _stop_if(interrupted)
            features = self._encoder.encode(medium)
            total = medium.prepared.num_tokens
            kept.append(take_kept(features, total if inside else rule.count(total, features.cover)))
        _stop_if(interrupted)
        return kept

    def _prune(
        self, prompt: Prompt, media: Sequence[PreparedMedium], kept: Sequence[KeptTokens]
    ) -> PromptRows:
        prepared = [each.prepared for each in media]
        positions, next_position = self._family.positions(prompt.is_visual, prepared)
        indices = [each.indices for each in kept]
        mode = self._manifest.selector.positions
        return prune_prompt(prompt, indices, positions, next_position, mode)

    def _turn_ends(
        self,
        conversation: Conversation,
        media: Sequence[PreparedMedium],
        prompt: Prompt,
        rows: PromptRows,
    ) -> list[int]:
        """Rows of the pruned prompt at which its earlier answers begin, where that matters."""
        if self._prefiller.rows_together == 1:
            return []
        prepared = [each.prepared for each in media]
        ends = self._prompts.turn_ends(conversation, prepared, prompt)
        return [rows.row_of(end) for end in ends]

    def _record(
        self,
        rows: PromptRows,
        media: Sequence[PreparedMedium],
        num_pictures: int,
        started: Started,
        clock: Stopwatch,
    ) -> Prefill:
        """What is known of an answer once its first token is chosen."""
        return Prefill(
            images=tuple(
                _image_result(kept, each.prepared, num_pictures)
                for kept, each in zip(started.kept, media, strict=True)
            ),
            prompt_tokens=len(rows),
            cached_tokens=started.cached,
            first_token=started.first_token,
            laps=clock.laps,
            selection_ms=started.selection_ms,
            kv_cache=self._manifest.kv_cache_bytes,
            backend=self._backend.name,
        )

    def _answer_limit(self, rows: PromptRows, max_new_tokens: int) -> int:
        return answer_limit(
            self._manifest,
            max_new_tokens=max_new_tokens,
            prompt_tokens=len(rows),
            num_visual=int(rows.is_visual.sum()),
            next_position=rows.next_position,
        )


def _stop_if(interrupted: Callable[[], bool]) -> None:
    if interrupted():
        raise InterruptedAnswerError


def _add_earlier_time(laps: dict[str, float], media: Sequence[PreparedMedium]) -> None:
    """Count what encoding took as part of this answer, whenever it was done."""
    for medium in media:
        if medium.encoded is not None:
            laps["preprocess"] += medium.encoded.preprocess_ms
            laps["vision"] += medium.encoded.vision_ms


def _image_result(kept: KeptTokens, prepared: Prepared, num_media: int) -> ImageResult:
    order = None if kept.order is None else tuple(kept.order.tolist())
    return ImageResult(
        tuple(kept.indices.tolist()),
        kept.num_image_tokens,
        order,
        kind=prepared.kind,
        cover=kept.cover,
        note=prepared.note,
        num_media=num_media,
    )
