"""From a conversation with pictures to text: vision graph, selection, language model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from divprune.runtime.backends import load_backend
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.limits import validate_max_new_tokens
from divprune.runtime.errors import EngineDirectoryError
from divprune.runtime.families import MediaKind, VideoFrames, load_family
from divprune.runtime.generation.answering import Answering
from divprune.runtime.generation.embeddings import EmbeddingTable
from divprune.runtime.generation.encoded_image import EncodedImage
from divprune.runtime.generation.generation import (
    Generation,
)
from divprune.runtime.generation.generation_config import load_token_rules
from divprune.runtime.generation.kept_tokens import KeepRule
from divprune.runtime.generation.media_encoder import MediaEncoder
from divprune.runtime.generation.picture_cache import PictureCache
from divprune.runtime.generation.prefiller import Prefiller
from divprune.runtime.generation.result import ImageResult
from divprune.runtime.generation.sampling import SamplingOptions
from divprune.runtime.generation.stop_text import validate_stop
from divprune.runtime.inputs.messages import Medium, as_pictures, question, read_messages
from divprune.runtime.inputs.prompt_writer import PromptWriter
from divprune.runtime.inputs.tokenization import TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from divprune.runtime.backends import Backend
    from divprune.runtime.directory.keep import AutoKeep
    from divprune.runtime.directory.manifest import Manifest

    Picture = str | Path | bytes | Image.Image
    EncodedOrPicture = Picture | EncodedImage

__all__ = ["Pipeline"]

_GREEDY = SamplingOptions()
_PICTURE_CACHE_BYTES = 256 << 20


class Pipeline:
    """An engine directory, loaded: holds conversations about pictures.

    One pipeline has one KV cache, so one answer is made at a time: starting the next ends
    the one before. Whatever a prompt shares with what the cache holds (the same tokens, and the
    same kept tokens of the same pictures) is not computed again.

    Args:
        directory: An opened, verified engine directory.
        backend: What runs its graphs.
        picture_cache_bytes: Room for the features of pictures that were encoded before.
    """

    def __init__(
        self,
        directory: EngineDirectory,
        backend: Backend,
        *,
        picture_cache_bytes: int = _PICTURE_CACHE_BYTES,
    ) -> None:
        self.manifest = directory.manifest
        self.backend = backend
        self.family = load_family(directory)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            directory.file(name)  # refused if nobody has checked it
        self._tokenizer = TextTokenizer.from_dir(directory.path)
        self._prompts = PromptWriter(directory, self.family.placeholders, self._tokenizer)
        self._encoder = MediaEncoder(
            self.manifest, self.family, backend, PictureCache(picture_cache_bytes)
        )
        self._table = EmbeddingTable(
            directory.file("embed_tokens.safetensors"), self._tokenizer.token
        )
        self._prefiller = Prefiller(
            backend,
            self._table,
            self.manifest.model.position_axes,
            _rows_together(self.manifest, backend),
        )
        self._answering = Answering(
            self.manifest,
            self.family,
            backend,
            self._encoder,
            self._prompts,
            self._tokenizer,
            self._prefiller,
            load_token_rules(directory.file("generation_config.json")),
        )
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

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        keep: float | str | AutoKeep | None = None,
        max_new_tokens: int = 128,
        sampling: SamplingOptions = _GREEDY,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        num_frames: int | None = None,
        fps: float | None = None,
        reuse: bool = True,
        scope: Hashable = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Answer the last message of a conversation.

        Everything up to the choice of the first token is done before this returns. Pictures and
        videos are pruned each on its own.

        Args:
            messages: Roles and contents as in OpenAI's chat API (`inputs.messages` has the
                forms); a text alone is a conversation too.
            keep: Fraction of visual tokens to keep, or ``auto:C`` to keep as few as leave no
                dropped token less similar than C to a kept one; None keeps what the export
                chose.
            max_new_tokens: Upper limit of the answer.
            sampling: How tokens are chosen; greedy by default. What the model's generation config
                says beyond sampling (a repetition penalty, tokens that are never chosen) holds
                in any case, over the prompt with all its visual tokens.
            stop: Texts that end the answer where they come up; they are left out of it.
            ignore_eos: Go on to the limit whatever is chosen, as a measurement may want.
            num_frames: Frames to take of a video; None leaves it to the family.
            fps: Frames a second of videos that do not say it: folders and animations.
            reuse: False computes everything anew, as a measurement wants.
            scope: Cached rows and pictures are shared only between calls of the same scope.
            interrupted: Asked before each picture is encoded, before the prompt is prefilled
                and before each token; once it says so, nothing more is computed.

        Returns:
            An iterator of text pieces; its ``result`` is a ``GenerationResult``.

        Raises:
            InterruptedAnswerError: once ``interrupted`` says so, from the iterator too.
            PromptError: if messages have another form, or the prompt does not fit.
            OptionError: for a ``keep`` this directory cannot serve, no new token, or an empty
                ``stop``.
            ImageError: if a picture or video cannot be read.
            NumericalError: if a graph produced a NaN or Inf.
        """
        conversation = read_messages(messages)
        rule = KeepRule.of(self.manifest, keep)
        validate_max_new_tokens(max_new_tokens)
        stop = validate_stop(stop)
        if not reuse:
            self.forget()
        return self._answering.begin(
            conversation,
            rule,
            sampling,
            stop,
            max_new_tokens=max_new_tokens,
            ignore_eos=ignore_eos,
            num_frames=num_frames,
            fps=fps,
            scope=scope,
            interrupted=interrupted,
        )

    def encode_ahead(
        self, messages: Sequence[Mapping[str, Any]], *, scope: Hashable = None
    ) -> None:
        """Put the pictures of a conversation into the cache, before ``chat`` is asked about it.

        May be called from another thread while an answer is being made, where the backend's
        ``encodes_beside_decoding`` says so.

        Args:
            messages: As ``chat`` takes them.
            scope: Of the call of ``chat`` that will follow.

        Raises:
            PromptError: if messages have another form.
            ImageError: if a picture or video cannot be read.
        """
        conversation = read_messages(messages)
        for medium in conversation.media:
            opened = self._encoder.open(medium)
            self._encoder.encode_ahead(opened, num_media=conversation.num_pictures, scope=scope)

    def generate(
        self,
        images: EncodedOrPicture | Sequence[EncodedOrPicture],
        prompt: str,
        **options: Any,
    ) -> Generation:
        """Answer ``prompt`` about one or several pictures: a short form of ``chat``.

        Args:
            images: A path, URL, ``-`` for standard input, bytes, PIL image, what
                ``encode_image`` made of one, or several.
            prompt: The question.
            options: Those of ``chat``.

        Raises:
            OptionError: if there is no picture; otherwise as ``chat``.
        """
        return self.chat(question(prompt, as_pictures(images)), **options)

    def draw_overlay(
        self,
        image: Picture | VideoFrames,
        pruning: ImageResult,
        *,
        numbers: bool = False,
        num_frames: int | None = None,
        fps: float | None = None,
    ) -> Image.Image:
        """Draw which patches of a picture or video were kept.

        Args:
            image: The picture or video.
            pruning: What became of it: one of ``GenerationResult.images``.
            numbers: Number the patches in the order of selection, from 1.
            num_frames: Frames that were taken of a video.
            fps: What was said of it.

        Returns:
            The picture in RGB, kept patches bright and the rest dimmed: a panel each for views
            that overlap, a sheet of its frames for a video.

        Raises:
            ImageError: if the picture cannot be read.
            OptionError: if ``numbers`` are asked for where nothing was selected.
            UnsupportedError: if it is not known where in the picture a token lies.
        """
        from divprune.runtime.generation.overlay import (
            draw_contact_sheet,
            draw_overlay,
            nothing_to_number,
        )

        if numbers and pruning.selection_order is None:
            raise nothing_to_number()
        order = pruning.selection_order if numbers else None
        kind: MediaKind = "video" if pruning.kind == "video" else "image"
        content = self._encoder.open(Medium(kind, image, kind), fps).content
        if isinstance(content, VideoFrames):
            prepared = self.family.prepare_video(content, num_frames, pruning.num_media)
            frames = [content.frames[place] for place in prepared.frames]
            return draw_contact_sheet(frames, prepared.token_map(), pruning.kept_indices, order)
        picture = cast("Image.Image", content)
        token_map = self.family.prepare_image(picture, pruning.num_media).token_map()
        return draw_overlay(picture, token_map, pruning.kept_indices, order)

    def prompt_ids(self, prompt: str, num_images: int = 1) -> list[int]:
        """Token ids of a question whose pictures have one visual token each.

        Separators inside a picture are not among them: how many there are depends on its size.

        Raises:
            PromptError: if the prompt cannot be built.
        """
        return self._prompts.question_ids(prompt, num_images)

    def count_text_tokens(self, prompt: str, num_images: int = 1) -> int:
        """Tokens of ``prompt`` around the pictures, with what the chat template adds.

        Raises:
            PromptError: if the prompt cannot be built.
        """
        return len(self.prompt_ids(prompt, num_images)) - num_images

    def encode_image(self, image: Picture) -> EncodedImage:
        """Put a picture through the vision graph once; ``generate`` takes the result as a picture.

        The times of its answers include what this took.

        Raises:
            ImageError: if the picture cannot be read.
        """
        return self._encoder.encode_alone(self._encoder.open(Medium("image", image, "image")))

    def open_video(self, source: str | Path | bytes) -> VideoFrames:
        """Open a video for ``chat``, which takes the result as a video.

        Raises:
            UnsupportedError: if the family takes no videos.
            VideoError: if there is none, or it cannot be read.
        """
        content = self._encoder.open(Medium("video", source, str(source))).content
        return cast("VideoFrames", content)

    def image_features(self, image: Picture) -> NDArray[np.floating]:
        """Features [N, hidden] of all tokens of a picture, as the selection sees them.

        Where the tower sees a smaller picture, these are its K tokens.

        Raises:
            ImageError: if the picture cannot be read.
        """
        features = self.encode_image(image).features
        return features.compared

    @property
    def picture_cache(self) -> PictureCache:
        """Pictures that were encoded before."""
        return self._encoder.cache

    def forget(self) -> None:
        """Drop cached rows and pictures: the next answer computes everything."""
        self._prefiller.forget()
        self._encoder.cache.clear()

    @property
    def _most_tokens(self) -> int:
        """Visual tokens of the largest picture, as the family counts them."""
        tokens = self.family.dims().get("tokens")
        return self.family.count_tokens(640, 480) if tokens is None else tokens.maximum

    def _check_parts(self) -> None:
        """Refuse files that are each valid, but of different models."""
        embeds = self.manifest.graphs[self.manifest.llm_graphs[0]].inputs[0]
        table = self._table
        for what, expected, found in (
            ("embedding type", embeds.dtype, table.dtype.name),
            ("embedding size", self.manifest.model.hidden_size, table.hidden_size),
            ("number of visual tokens", self.manifest.selector.num_image_tokens, self._most_tokens),
        ):
            if expected != found:
                raise EngineDirectoryError(
                    f"the files of this engine directory disagree about the {what}",
                    expected=expected,
                    found=found,
                    fix="export the model again with divprune-export",
                )


def _rows_together(manifest: Manifest, backend: Backend) -> int:
    """Rows of a prompt whose numbers depend on how many are computed together; 1 otherwise.

    Activations of 8 bits, beside int4 weights too, make a visible difference of the last digit
    of a float32, which is another one with another number of rows.
    """
    quantized = manifest.quant is not None or manifest.prefill_quant is not None
    return (backend.rows_at_once or 1) if quantized else 1
