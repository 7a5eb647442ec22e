"""A video from wherever the user has it: a file, an animation, or a folder of frames.

Frames are decoded when they are asked for, one at a time: which of them a model takes is its
family's choice, and a long video does not fit into memory. They come upright and in RGB.
"""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from PIL import Image, ImageSequence, UnidentifiedImageError

from divprune.runtime.errors import VideoError, shorten
from divprune.runtime.inputs.image_loading import MAX_PIXELS, load_image, read_size
from divprune.runtime.inputs.image_sources import file_path, open_source, scheme_of
from divprune.runtime.inputs.video_frames import VideoFrames

__all__ = ["LazyFrames", "load_video"]

_ACCEPTED = "a video file, an animated GIF or WebP, a folder of frames, or a URL"
_LONGEST_NAME = 200

Source = str | Path | bytes | bytearray | memoryview


class LazyFrames(Sequence[Image.Image]):
    """Frames that are decoded in the order in which they are asked for.

    Asking backwards starts the decoder again.

    Args:
        total: How many there are.
        start: Begins decoding: frames in RGB from the first on, each as a function that makes
            the picture, so that those that are passed over cost no conversion.
        name: What messages call the video.
    """

    def __init__(
        self, total: int, start: Callable[[], Iterator[Callable[[], Image.Image]]], name: str
    ) -> None:
        self._total, self._start, self._name = total, start, name
        self._decoder: Iterator[Callable[[], Image.Image]] = iter(())
        self._next = total
        self._last: tuple[int, Image.Image] | None = None

    def __len__(self) -> int:
        return self._total

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Sequence[Image.Image]:
        if isinstance(index, slice):
            return [self[place] for place in range(self._total)[index]]
        place = range(self._total)[index]
        if self._last is None or self._last[0] != place:
            self._last = place, self._decode(place)
        return self._last[1]

    def _decode(self, place: int) -> Image.Image:
        if place < self._next:
            self._decoder, self._next = self._start(), 0
        make: Callable[[], Image.Image] | None = None
        while self._next <= place:
            make = next(self._decoder, None)
            if make is None:
                raise VideoError(
                    f"{self._name} ends early",
                    expected=f"{self._total} frames, of which number {place} is wanted",
                    found=f"{self._next} that can be decoded",
                    fix="the video is damaged or cut off: get it again",
                )
            self._next += 1
        assert make is not None
        return make()


def load_video(source: Source) -> VideoFrames:
    """Open the video at ``source``; its frames are decoded when they are asked for.

    Args:
        source: Path of a video file (through PyAV), of an animated GIF or WebP, or of a folder
            whose pictures are the frames in the order of their names; a URL (``http``, ``https``,
            ``file``, ``data``) of such a file; or the bytes of one.

    Raises:
        VideoError: if nothing is there, it holds no frame, it is damaged, frames have different
            sizes, or PyAV is missing or lacks the codec.
        ImageError: if a frame of a folder cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_file(bytes(source), f"the video of {len(source)} bytes")
    if not isinstance(source, (str, Path)):
        raise VideoError("a video cannot come from there", expected=_ACCEPTED, found=type(source))
    scheme = scheme_of(source)
    if scheme not in (None, "file"):
        stream, name = open_source(source)
        with stream:
            return _open_file(stream.read(), name)
    path = file_path(str(source)) if scheme == "file" else Path(source)
    name = shorten(str(path), _LONGEST_NAME)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise VideoError(f"{name} does not exist", expected=_ACCEPTED) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VideoError(f"{name} cannot be opened", expected=_ACCEPTED, found=reason) from error
    if stat.S_ISDIR(mode):
        return _open_folder(path)
    if not stat.S_ISREG(mode):
        raise VideoError(f"{name} is no file", expected=_ACCEPTED, found="a pipe or a device")
    return _open_file(path, name)


def _open_folder(folder: Path) -> VideoFrames:
    endings = Image.registered_extensions()
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in endings)
    except OSError as error:
        raise VideoError(f"{folder} cannot be read", found=error.strerror) from error
    files = [file for file in files if file.is_file()]
    if not files:
        raise VideoError(
            f"{folder} holds no frames", expected="pictures, in the order of their names"
        )
    size = read_size(files[0], upright=True)
    for file in files[1:]:
        if (other := read_size(file, upright=True)) != size:
            raise VideoError(
                "the frames of a video have different sizes",
                expected=f"{size[0]} x {size[1]} pixels, as {files[0].name}",
                found=f"{other[0]} x {other[1]} pixels: {file}",
                fix="scale the frames to one size, or take other pictures out of the folder",
            )

    def start() -> Iterator[Callable[[], Image.Image]]:
        return iter([lambda file=file: load_image(file) for file in files])

    frames = LazyFrames(len(files), start, str(folder))
    return VideoFrames(frames, fps=None, fingerprint=_fingerprint(files))


def _open_file(source: Path | bytes, name: str) -> VideoFrames:
    prints = _fingerprint([source]) if isinstance(source, Path) else hashlib.sha256(source).digest()
    try:
        picture = Image.open(source if isinstance(source, Path) else io.BytesIO(source))
    except (UnidentifiedImageError, OSError, ValueError):
        return _open_with_pyav(source, name, prints)
    with picture:
        if picture.format not in ("GIF", "WEBP") and getattr(picture, "n_frames", 1) == 1:
            raise VideoError(
                f"{name} is a picture",
                expected=_ACCEPTED,
                found=f"one {picture.format} picture",
                fix="give it as a picture, not as a video",
            )
        return _open_animation(source, picture, name, prints)


def _open_animation(
    source: Path | bytes, picture: Image.Image, name: str, fingerprint: bytes
) -> VideoFrames:
    """Frames through Pillow; the first one's duration counts for all."""
    _check_pixels(picture.size, name)
    load_image(picture)  # WebP tells a duration only behind the first frame
    duration = picture.info.get("duration")

    def start() -> Iterator[Callable[[], Image.Image]]:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
            for frame in ImageSequence.Iterator(opened):
                yield lambda frame=frame: load_image(frame)  # type: ignore[misc]

    frames = LazyFrames(getattr(picture, "n_frames", 1), start, name)
    return VideoFrames(frames, 1000 / duration if duration else None, fingerprint)


def _open_with_pyav(source: Path | bytes, name: str, fingerprint: bytes) -> VideoFrames:
    av = _pyav(name)

    def open_stream() -> tuple[Any, Any]:
        container = av.open(str(source) if isinstance(source, Path) else io.BytesIO(source))
        return container, _video_stream(container, name)

    def start() -> Iterator[Callable[[], Image.Image]]:
        try:
            container, stream = open_stream()
            with container:
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    yield lambda frame=frame: _upright(frame)  # type: ignore[misc]
        except av.FFmpegError as error:
            raise _damaged(name, error) from error

    try:
        container, stream = open_stream()
        with container:
            _check_pixels((stream.codec_context.width, stream.codec_context.height), name)
            # A packet a frame: counting those is cheap, and exact where the header is not.
            total = sum(packet.size > 0 for packet in container.demux(stream))
            rate = stream.average_rate
    except av.FFmpegError as error:
        raise _damaged(name, error) from error
    if total == 0:
        raise VideoError(f"{name} holds no frames", expected="at least one", found="none")
    frames = LazyFrames(total, start, name)
    return VideoFrames(frames, float(rate) if rate else None, fingerprint)


def _pyav(name: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise VideoError(
            f"{name} needs PyAV, which is not installed",
            expected="the package av, for video files",
            found=error,
            fix='pip install "divprune-edge[video]", or give a folder of frames or a GIF',
        ) from error
    return av


def _video_stream(container: Any, name: str) -> Any:
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(
            f"{name} holds no video",
            expected="a video stream",
            found=", ".join(kinds) or "no stream",
        )
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise VideoError(
            f"{name} is in a format that PyAV cannot decode",
            expected="a codec such as H.264, VP9 or AV1",
            found="one without a decoder",
            fix="ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4",
        )
    return stream


def _upright(frame: Any) -> Image.Image:
    picture: Image.Image = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _damaged(name: str, error: object) -> VideoError:
    return VideoError(
        f"{name} cannot be decoded",
        expected=_ACCEPTED,
        found=error,
        fix="the video is damaged or of another kind: get it again",
    )


def _check_pixels(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise VideoError(
            f"the frames of {name} are too large to decode",
            expected=f"at most {MAX_PIXELS} pixels",
            found=f"{size[0]} x {size[1]}",
        )


def _fingerprint(files: Sequence[Path]) -> bytes:
    """What tells files apart without reading them: path, size and time of the last change."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.digest()
