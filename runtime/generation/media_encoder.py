"""From a picture or video to its visual tokens: open, prepare, vision graph, remember."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.directory.keep import exported_count
from divprune.runtime.errors import EngineDirectoryError, OptionError, UnsupportedError
from divprune.runtime.families import Family, Prepared, VideoFrames
from divprune.runtime.generation.encoded_image import EncodedImage
from divprune.runtime.generation.picture_cache import PictureCache
from divprune.runtime.generation.picture_digest import digest_of
from divprune.runtime.generation.stopwatch import Stopwatch
from divprune.runtime.inputs.image_loading import load_image

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.backends import Backend
    from divprune.runtime.backends.image_features import ImageFeatures
    from divprune.runtime.directory.manifest import Manifest
    from divprune.runtime.inputs.messages import Medium

__all__ = ["MediaEncoder", "Opened", "PreparedMedium"]


@dataclass(frozen=True)
class Opened:
    """A decoded picture or video, or one that was encoded before."""

    content: Image.Image | VideoFrames | EncodedImage


@dataclass(frozen=True)
class PreparedMedium:
    """What goes into the vision graph, or what came out of it before.

    Attributes:
        prepared: The family's preparation.
        digest: Of the pixels and of how they were prepared.
        encoded: The result where there is one already.
    """

    prepared: Prepared
    digest: bytes
    encoded: EncodedImage | None = None


class MediaEncoder:
    """Encodes the pictures and videos of one engine directory.

    Args:
        manifest: Manifest of the engine directory.
        family: Prepares them.
        backend: Runs the vision graph.
        cache: Where encoded ones are kept.
    """

    def __init__(
        self, manifest: Manifest, family: Family, backend: Backend, cache: PictureCache
    ) -> None:
        self._manifest, self._family, self._backend = manifest, family, backend
        self.cache = cache

    def open(self, medium: Medium, fps: float | None = None) -> Opened:
        """Decode a picture, or open a video, whose frames are decoded as they are taken.

        Args:
            medium: The picture or video.
            fps: Frames a second of a video that does not say it.

        Raises:
            ImageError: if it cannot be read.
        """
        if isinstance(medium.source, EncodedImage):
            return Opened(medium.source)
        if medium.kind == "image":
            return Opened(load_image(medium.source, copy=False))
        if isinstance(medium.source, VideoFrames):
            return Opened(_timed(medium.source, fps))
        if "video" not in self._family.placeholders:
            raise UnsupportedError(
                "this model takes no videos",
                expected="pictures",
                found=f"a video, {medium.place}",
                fix="give single frames as pictures, or export a model for videos such as "
                "llava-next-video-7b",
            )
        from divprune.runtime.inputs.video import load_video  # type: ignore[import-not-found, unused-ignore]

        return Opened(_timed(load_video(medium.source), fps))

    def prepare(
        self,
        opened: Opened,
        *,
        num_media: int = 1,
        num_frames: int | None = None,
        scope: Hashable = None,
    ) -> PreparedMedium:
        """Make the inputs of the vision graph, unless the picture is known already.

        Args:
            opened: The picture or video.
            num_media: Pictures in the request.
            num_frames: Frames to take of a video.
            scope: Pictures are shared only between calls of the same scope.

        Raises:
            ImageError: if it cannot be prepared.
            UnsupportedError: for a video where the family takes none.
        """
        content = opened.content
        if isinstance(content, EncodedImage):
            return PreparedMedium(content.prepared, content.digest, content)
        digest = self._identify(content, num_media, num_frames, scope)
        if (known := self.cache.get(digest)) is not None:
            return PreparedMedium(known.prepared, digest, known)
        return self._prepare(content, digest, num_media, num_frames)

    def encode_ahead(self, opened: Opened, *, num_media: int, scope: Hashable) -> None:
        """Put a picture or video into the cache, for a request that will ask about it.

        Args:
            opened: The picture or video.
            num_media: Pictures in that request.
            scope: Of that request.

        Raises:
            ImageError: if it cannot be prepared.
            UnsupportedError: for a video where the family takes none.
        """
        content = opened.content
        if isinstance(content, EncodedImage):
            return
        digest = self._identify(content, num_media, None, scope)
        if digest not in self.cache:
            self.encode(self._prepare(content, digest, num_media, None))

    def _identify(
        self,
        content: Image.Image | VideoFrames,
        num_media: int,
        num_frames: int | None,
        scope: Hashable,
    ) -> bytes:
        context = num_media if self._family.request_sensitive else None
        return digest_of(content, (context, num_frames, scope))

    def _prepare(
        self,
        content: Image.Image | VideoFrames,
        digest: bytes,
        num_media: int,
        num_frames: int | None,
    ) -> PreparedMedium:
        if isinstance(content, VideoFrames):
            prepared = self._family.prepare_video(content, num_frames, num_media)
        else:
            prepared = self._prepare_image(content, num_media)
        self._check_size(prepared)
        return PreparedMedium(prepared, digest)

    def _prepare_image(self, picture: Image.Image, num_media: int) -> Prepared:
        """What a family trips over in a decoded picture is what its directory says about it."""
        try:
            return self._family.prepare_image(picture, num_media)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise EngineDirectoryError(
                f"{self._manifest.model.family} cannot prepare a picture as this directory says",
                expected="model.facts and a configuration as the export wrote them",
                found=f"{type(error).__name__}: {error}",
            ) from error

    def encode(self, medium: PreparedMedium) -> ImageFeatures:
        """Run the vision graph, unless it has run on this picture before."""
        if medium.encoded is not None:
            return medium.encoded.features
        prepared = medium.prepared
        inputs: dict[str, Any] = dict(prepared.inputs)
        if self._manifest.has_variable_tokens and not self._manifest.selector.inside_llm:
            kept = exported_count(self._manifest, prepared.num_tokens)
            inputs["kept_slots"] = np.zeros(kept, np.int32)
        features = self._backend.encode_image(inputs)
        without_inputs = replace(prepared, inputs=MappingProxyType({}))
        self.cache.put(EncodedImage(without_inputs, features, medium.digest, 0.0, 0.0))
        return features

    def encode_alone(self, opened: Opened) -> EncodedImage:
        """Encode one picture or video for questions that come later, with its times."""
        if isinstance(opened.content, EncodedImage):
            return opened.content
        clock = Stopwatch()
        medium = self.prepare(opened)
        clock.lap("preprocess")
        features = self.encode(medium)
        clock.lap("vision")
        prepared = replace(medium.prepared, inputs=MappingProxyType({}))
        laps = clock.laps
        return EncodedImage(prepared, features, medium.digest, laps["preprocess"], laps["vision"])

    def _check_size(self, prepared: Prepared) -> None:
        """Refuse what the graphs were not exported for."""
        for name, size in _sizes(self._manifest, prepared).items():
            limits = self._manifest.dims[name]
            if not limits.minimum <= size <= limits.maximum:
                too_many = size > limits.maximum
                raise OptionError(
                    f"this {prepared.kind} has {'more' if too_many else 'fewer'} {name} than the "
                    "engine directory allows",
                    expected=f"{limits.minimum} to {limits.maximum}",
                    found=size,
                    fix="give a smaller picture or fewer frames, or export again with a larger "
                    "--max-image-tokens"
                    if too_many
                    else "give a larger picture or more frames",
                )


def _sizes(manifest: Manifest, prepared: Prepared) -> dict[str, int]:
    """What a picture makes of the named dimensions of the vision graph."""
    sizes: dict[str, int] = {}
    for tensor in manifest.graphs["vision"].inputs:
        if (array := prepared.inputs.get(tensor.name)) is not None:
            pairs = list(zip(tensor.shape, array.shape, strict=False))
            fixed = all(dim == size for dim, size in pairs if not isinstance(dim, str))
            if array.ndim != len(tensor.shape) or not fixed:
                raise EngineDirectoryError(
                    f"{tensor.name} of a {prepared.kind} does not fit the vision graph",
                    expected=f"the shape {list(tensor.shape)}, as the manifest says",
                    found=f"{list(array.shape)}, from model.facts and preprocessor_config.json",
                )
            sizes |= {dim: size for dim, size in pairs if isinstance(dim, str)}
    return sizes


def _timed(video: VideoFrames, fps: float | None) -> VideoFrames:
    return replace(video, fps=fps) if video.fps is None else video
