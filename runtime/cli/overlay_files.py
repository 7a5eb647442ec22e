"""Files of ``--overlay``: checked before anything runs, written after the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from divprune.runtime.directory.safe_write import check_place, write_file
from divprune.runtime.errors import OptionError
from divprune.runtime.generation.overlay import ENDINGS, encode_overlay, nothing_to_number

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.directory.manifest import Manifest

__all__ = ["check_drawable", "check_overlay_options", "overlay_paths", "write_overlay"]


def overlay_paths(output: str, count: int) -> list[Path]:
    """One path a picture: ``out.png``, ``out-2.png``, ``out-3.png``, ..."""
    path = Path(output)
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, count + 1))
    return [path, *numbered]


def check_overlay_options(output: str | None, images: Sequence[str], *, numbers: bool) -> None:
    """Refuse what cannot be written, before any file is opened.

    Raises:
        OptionError: for an ending that is no picture format, a place that cannot be written,
            a path that is one of the pictures, and numbers without an overlay.
    """
    if output is None:
        if numbers:
            raise OptionError("--overlay-numbers needs --overlay", fix="add --overlay out.png")
        return
    ending = Path(output).suffix
    if ending.lower() not in ENDINGS:
        raise OptionError(
            "--overlay names no picture format",
            expected=f"a file ending in {', '.join(ENDINGS)}",
            found=output if ending else f"{output} (no ending)",
        )
    for path in overlay_paths(output, len(images)):
        if any(_same_file(path, image) for image in images):
            raise OptionError(
                f"--overlay would replace the picture {path}", fix="choose another name"
            )
        check_place(path, "--overlay")


def check_drawable(manifest: Manifest, count: int, *, numbers: bool) -> None:
    """Refuse numbers where there is no order of selection, before anything is loaded.

    Args:
        manifest: Manifest of the engine directory.
        count: Tokens to keep of the largest picture.
        numbers: Whether the order of selection is drawn.

    Raises:
        OptionError: if there is no order of selection to draw.
    """
    if numbers and count > manifest.selector.num_kept:
        raise nothing_to_number()


def write_overlay(path: Path, overlay: Image.Image) -> None:
    """Encode, then write; a file that is there is replaced only by a complete one.

    Raises:
        OptionError: if the picture does not suit the format, or cannot be written.
    """
    try:
        content = encode_overlay(overlay, path.suffix)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"the overlay does not suit {path.suffix}",
            found=error,
            fix="choose a name for --overlay that ends in .png",
        ) from error
    write_file(path, content, "--overlay")


def _same_file(path: Path, image: str) -> bool:
    if image.lower().startswith("file:"):
        image = unquote(image[len("file:") :])
        image = image.removeprefix("//localhost").removeprefix("//")
    try:
        return path.samefile(image)
    except (OSError, ValueError):
        return False
