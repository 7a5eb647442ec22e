"""From pictures and a question to text: vision graph, selection, language model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count as count_from
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from divprune.runtime.backends import load_backend
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.limits import answer_limit, validate_max_new_tokens
from divprune.runtime.errors import EngineDirectoryError, OptionError
from divprune.runtime.generation.embeddings import EmbeddingTable
from divprune.runtime.generation.encoded_image import EncodedImage
from divprune.runtime.generation.generation import Generation, Prefill
from divprune.runtime.generation.generation_config import load_eos_token_ids
from divprune.runtime.generation.kept_tokens import KeptTokens, resolve_keep, take_kept
from divprune.runtime.generation.merge import position_ids, splice
from divprune.runtime.generation.result import ImageResult
from divprune.runtime.generation.sampling import Sampler, SamplingOptions
from divprune.runtime.inputs.chat_template import ChatTemplate
from divprune.runtime.inputs.image_loading import load_image
from divprune.runtime.inputs.image_processor import ImageProcessor
from divprune.runtime.inputs.prompt import build_prompt, expand_prompt
from divprune.runtime.inputs.tokenization import TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from divprune.runtime.backends import Backend, ImageFeatures, Logits

    Picture = str | Path | bytes | Image.Image
    EncodedOrPicture = Picture | EncodedImage

__all__ = ["Pipeline", "as_pictures"]

_GREEDY = SamplingOptions()


class Pipeline:
    """An engine directory, loaded: answers questions about pictures.

    One pipeline has one KV cache, so one answer is made at a time: starting the next ends
    the one before.

    Args:
        directory: An opened, verified engine directory.
        backend: What runs its graphs.
    """

    def __init__(self, directory: EngineDirectory, backend: Backend) -> None:
        self.manifest = directory.manifest
        self.backend = backend
        self._tokenizer = TextTokenizer.from_dir(directory.path)
        self._template = ChatTemplate(
            directory.file("chat_template.jinja").read_text(encoding="utf-8"),
            self._tokenizer.special_tokens,
        )
        self._processor = ImageProcessor.from_config(
            json.loads(directory.file("preprocessor_config.json").read_text(encoding="utf-8"))
        )
        self._eos_token_ids = load_eos_token_ids(directory.file("generation_config.json"))
        self._table = EmbeddingTable(directory.file("embed_tokens.safetensors"))
        self._image_token_id = self.manifest.model.image_token_id
        self._turn = 0
        self._check_parts()

    @classmethod
    def from_dir(
        cls,
        path: str | Path,
        *,
        backend: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        max_seq_len: int | None = None,
        residency: str = "concurrent",
        verify: Literal["cached", "full"] = "cached",
    ) -> Pipeline:
        """Open, check and load an engine directory.

        Args:
            path: The engine directory.
            backend: Name of a backend; None takes the one it was exported for.
            device: ``cpu`` or ``cuda``; None takes the GPU with TensorRT, otherwise the CPU.
            threads: Threads inside one operator; None leaves it to the backend.
            max_seq_len: Length of the KV cache, prompt and answer together; at most that of the
                export, which None takes.
            residency: ``sequential`` has the vision graph or the LLM in memory, never both: less
                memory, but each answer loads both, which its times include. A picture that is
                encoded ends a generation that is going on.
            verify: ``cached`` hashes files that have changed since they were last hashed,
                ``full`` hashes all of them.

        Raises:
            EngineDirectoryError: if the directory is missing, damaged or of another schema.
            BackendError: if the backend is missing, too old, or refuses the graphs.
            OptionError: for an unknown backend, device or residency, or another ``max_seq_len``.
            UnsupportedError: for a shorter ``max_seq_len`` where the graphs fix it.
        """
        directory = EngineDirectory.open(Path(path), verify=verify, max_seq_len=max_seq_len)
        loaded = load_backend(
            backend, directory, device=device, threads=threads, residency=residency
        )
        return cls(directory, loaded)

    def generate(
        self,
        images: EncodedOrPicture | Sequence[EncodedOrPicture],
        prompt: str,
        *,
        keep: float | None = None,
        max_new_tokens: int = 128,
        sampling: SamplingOptions = _GREEDY,
        ignore_eos: bool = False,
    ) -> Generation:
        """Answer ``prompt`` about one or several pictures, each pruned on its own.

        Everything up to the choice of the first token is done before this returns.

        Args:
            images: A path, URL, ``-`` for standard input, bytes, PIL image, what
                ``encode_image`` made of one, or several.
            prompt: The question.
            keep: Fraction of visual tokens to keep; None keeps what the export chose.
            max_new_tokens: Upper limit of the answer.
            sampling: How tokens are chosen; greedy by default.
            ignore_eos: Go on to the limit whatever is chosen, as a measurement may want.

        Returns:
            An iterator of text pieces; its ``result`` is a ``GenerationResult``.

        Raises:
            OptionError: for a ``keep`` this directory cannot serve, no picture, no new token.
            ImageError: if a picture cannot be read.
            PromptError: if the prompt does not fit.
            NumericalError: if a graph produced a NaN or Inf.
        """
        count = resolve_keep(self.manifest, keep)
        validate_max_new_tokens(max_new_tokens)
        pictures = [_opened(picture) for picture in as_pictures(images)]
        sampler = Sampler(sampling)
        clock = Stopwatch()
        pixel_values = [self._pixel_values(picture) for picture in pictures]
        inside = self.manifest.selector.inside_llm
        # Inside the LLM every token enters; the front layers process all of them.
        fed = self.manifest.selector.num_image_tokens if inside else count
        ids = self._tokenize(prompt, len(pictures), fed)
        limit = answer_limit(
            self.manifest,
            max_new_tokens=max_new_tokens,
            prompt_tokens=len(ids),
            num_images=len(pictures),
            num_kept=fed,
        )
        clock.lap("preprocess")
        kept = [take_kept(self._features(pixels), fed) for pixels in pixel_values]
        clock.lap("vision")
        _add_earlier_time(clock.laps, pictures)
        embeds = splice(ids, kept, self._table, self._image_token_id)
        positions, next_position = position_ids(
            ids, kept, self._image_token_id, self.manifest.selector.positions
        )
        clock.lap("merge")
        step = self._start_sequence(next_position)
        selection_ms = None
        if fed == count:
            logits = self.backend.forward(embeds, positions)
        else:
            first_slots = self._first_slots(ids, fed)
            pruned = self.backend.prefill_pruned(embeds, positions, first_slots, count)
            logits, selection_ms = pruned.logits, pruned.selection_ms
            kept = [
                _chosen(all_of_it, order)
                for all_of_it, order in zip(kept, pruned.orders, strict=True)
            ]
        clock.lap("prefill")
        first_token = sampler(logits)
        clock.lap("first_sample")
        prefill = self._describe(kept, len(ids), first_token, clock.laps, selection_ms)
        return Generation(
            prefill,
            step=step,
            sampler=sampler,
            stream=self._tokenizer.stream(),
            eos_token_ids=() if ignore_eos else self._eos_token_ids,
            limit=limit,
        )

    def draw_overlay(
        self, image: Picture, pruning: ImageResult, *, numbers: bool = False
    ) -> Image.Image:
        """Draw which patches of a picture were kept.

        Args:
            image: The picture.
            pruning: What became of it: one of ``GenerationResult.images``.
            numbers: Number the patches in the order of selection, from 1.

        Returns:
            The picture in RGB, kept patches bright and the rest dimmed.

        Raises:
            ImageError: if the picture cannot be read.
            OptionError: if ``numbers`` are asked for where nothing was selected.
            UnsupportedError: if it is not known where in the picture a token lies.
        """
        from divprune.runtime.generation.overlay import PatchGrid, draw_overlay, nothing_to_number

        if numbers and pruning.selection_order is None:
            raise nothing_to_number()
        return draw_overlay(
            load_image(image),
            self._processor,
            PatchGrid.derive(pruning.num_image_tokens, self._processor.size),
            pruning.kept_indices,
            pruning.selection_order if numbers else None,
        )

    def count_text_tokens(self, prompt: str, num_images: int = 1) -> int:
        """Tokens of ``prompt`` around the pictures, with what the chat template adds.

        Raises:
            PromptError: if the prompt cannot be built.
        """
        return len(self._tokenize(prompt, num_images, 1)) - num_images

    def encode_image(self, image: Picture) -> EncodedImage:
        """Put a picture through the vision graph once; ``generate`` takes the result as a picture.

        The times of its answers include what this took.

        Raises:
            ImageError: if the picture cannot be read.
        """
        picture = load_image(image)
        clock = Stopwatch()
        pixels = self._processor(picture)
        clock.lap("preprocess")
        features = self.backend.encode_image(pixels)
        clock.lap("vision")
        return EncodedImage(features, clock.laps["preprocess"], clock.laps["vision"])

    def image_features(self, image: Picture) -> NDArray[np.floating]:
        """Features [N, hidden] of all tokens of a picture, as the selection sees them.

        Where the tower sees a smaller picture, these are its K tokens.

        Raises:
            ImageError: if the picture cannot be read.
        """
        features = self.encode_image(image).features
        return features.rows_behind(self.manifest.selector.num_kept)

    def _pixel_values(
        self, picture: Image.Image | EncodedImage
    ) -> NDArray[np.float32] | ImageFeatures:
        if isinstance(picture, EncodedImage):
            return picture.features
        return self._processor(picture)

    def _features(self, pixels: NDArray[np.float32] | ImageFeatures) -> ImageFeatures:
        return self.backend.encode_image(pixels) if isinstance(pixels, np.ndarray) else pixels

    def _tokenize(self, question: str, num_images: int, count: int) -> NDArray[np.int64]:
        prompt = build_prompt(
            question, num_images, self._template, self._tokenizer, self._image_token_id
        )
        return expand_prompt(prompt, [count] * num_images, self._image_token_id)

    def _first_slots(self, ids: NDArray[np.int64], count: int) -> list[int]:
        """Row of the first visual token of each picture, of which ``count`` are in ``ids``."""
        rows: list[int] = np.flatnonzero(ids == self._image_token_id)[::count].tolist()
        return rows

    def _start_sequence(self, next_position: int) -> Callable[[int], NDArray[np.float32] | Logits]:
        """Empty the cache; the function that feeds one token of the new sequence after it."""
        self.backend.reset()
        self._turn += 1
        turn, positions = self._turn, count_from(next_position)

        def step(token: int) -> NDArray[np.float32] | Logits:
            if turn != self._turn:
                raise RuntimeError("this pipeline has started another generation since")
            embeds = self._table.rows([token])[np.newaxis]
            return self.backend.forward(embeds, np.array([[next(positions)]], np.int64))

        return step

    def _describe(
        self,
        kept: Sequence[KeptTokens],
        rows: int,
        first_token: int,
        laps: dict[str, float],
        selection_ms: float | None,
    ) -> Prefill:
        return Prefill(
            images=tuple(map(_image_result, kept)),
            prompt_tokens=rows,
            first_token=first_token,
            laps=laps,
            selection_ms=selection_ms,
            kv_cache=self.manifest.kv_cache_bytes,
            backend=self.backend.name,
        )

    def _check_parts(self) -> None:
        """Refuse files that are each valid, but of different models."""
        names = (self.manifest.llm_graphs[0], "vision")
        llm, vision = (self.manifest.graphs[name].inputs for name in names)
        embeds = next(tensor for tensor in llm if tensor.name == "inputs_embeds")
        table = self._table
        for what, expected, found in (
            ("embedding type", embeds.dtype, table.dtype.name),
            ("embedding size", self.manifest.model.hidden_size, table.hidden_size),
            ("picture size", vision[0].shape[-2:], self._processor.size),
        ):
            if expected != found:
                raise EngineDirectoryError(
                    f"the files of this engine directory disagree about the {what}",
                    expected=expected,
                    found=found,
                    fix="export the model again with divprune-export",
                )


def as_pictures(
    images: EncodedOrPicture | Sequence[EncodedOrPicture],
) -> list[EncodedOrPicture]:
    """One picture or several as a list.

    Raises:
        OptionError: if there is none, or standard input is to be read twice.
    """
    several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    pictures = list(cast("Sequence[EncodedOrPicture]", images if several else [images]))
    if not pictures:
        raise OptionError("no picture was given", expected="one or more", found="none")
    if [str(picture) for picture in pictures if isinstance(picture, (str, Path))].count("-") > 1:
        raise OptionError("standard input (-) can give one picture only", found="- twice")
    return pictures


def _opened(picture: EncodedOrPicture) -> Image.Image | EncodedImage:
    return picture if isinstance(picture, EncodedImage) else load_image(picture)


def _add_earlier_time(
    laps: dict[str, float], pictures: Sequence[Image.Image | EncodedImage]
) -> None:
    """Count what encoding took as part of this answer, whenever it was done."""
    for picture in pictures:
        if isinstance(picture, EncodedImage):
            laps["preprocess"] += picture.preprocess_ms
            laps["vision"] += picture.vision_ms


def _chosen(tokens: KeptTokens, order: NDArray[np.int64]) -> KeptTokens:
    """What is left of a picture's tokens behind a selection inside the LLM."""
    indices = np.sort(order)
    return KeptTokens(indices, tokens.features[indices], tokens.num_image_tokens, order)


def _image_result(kept: KeptTokens) -> ImageResult:
    order = None if kept.order is None else tuple(kept.order.tolist())
    return ImageResult(tuple(kept.indices.tolist()), kept.num_image_tokens, order)


class Stopwatch:
    """Milliseconds between one lap and the next."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        """Record the time since the last lap."""
        now = perf_counter()
        self.laps[name] = (now - self._last) * 1000
        self._last = now
