"""Image files -> RGB pictures, and a check of all before long work starts.

What `data/features.py` and the encoders know of image files: how one is
opened, and which of a catalogue's cannot be.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from neggen_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> Image:
    """Opens an image as people see it: upright, RGB, on white.

    Args:
      path: the file.
      size: (width, height) the caller will shrink the image to, if it will.
        JPEG files are then decoded at the least scale that is not smaller,
        which is several times faster.

    Returns:
      The picture, decoded.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        if size is not None:
            file.draft("RGB", size)
        image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")


def check_images(
    paths: Iterable[Path],
) -> tuple[list[bytes], dict[int, str]]:
    """Reads every file once and decodes it at the least scale there is.

    So a truncated file in a million is found before the first vector is
    computed, and all of them at once.

    Args:
      paths: image files.

    Returns:
      The SHA-256 of each file's bytes (of none where it cannot be read),
      and position -> what is wrong with that file.
    """
    from PIL import Image

    digests, problems = [], {}
    for position, path in enumerate(paths):
        data = b""
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                image.draft("RGB", (1, 1))
                image.load()
        except Exception as error:  # decoders raise all kinds of errors
            # Some of Pillow's messages end with the name of our buffer.
            reason = str(error).split(" <_io.")[0]
            reason = getattr(error, "strerror", None) or reason
            problems[position] = reason or type(error).__name__
        digests.append(hashlib.sha256(data).digest())
    return digests, problems


def unreadable(
    problems: dict[int, str], paths: list[Path], names: list[str]
) -> InputError:
    """The error that counts the images with problems and names the first.

    Args:
      problems: as `check_images` found them.
      paths: image files.
      names: the item of each, as the person knows it.
    """
    first = min(problems)
    return InputError(
        f"{len(problems)} of {len(paths)} images cannot be read.",
        where=f"first: {paths[first]}, item {names[first]}",
        expected="a complete file of an image format that Pillow decodes",
        found=problems[first],
        fix="replace the files, or pass --bad_images=absent to go on without",
    )
