"""Pictures as language models are shown them: upright, RGB, not too large.

Used by the backends. A model reads a picture as tokens, whose number grows
with its area in most, so that shrinking saves what it costs.
"""

from __future__ import annotations

import base64
import io
import os
from typing import TYPE_CHECKING

from neggen_jax.data.images import open_image
from neggen_jax.generation.backends import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image


def shrunk(path: str | os.PathLike[str], side: int) -> Image:
    """Opens a picture, its longer side at most `side` pixels.

    Raises:
      RequestError: if it cannot be read; of a catalogue of millions, one
        broken picture is no reason to end.
    """
    try:
        picture = open_image(path, (side, side))
        picture.thumbnail((side, side))
    except Exception as error:  # decoders raise all kinds of errors
        # Some of Pillow's messages end with the name of a buffer.
        reason = str(error).split(" <_io.")[0]
        reason = getattr(error, "strerror", None) or reason
        raise RequestError(
            f"the picture {os.fspath(path)!r} cannot be read: "
            f"{reason or type(error).__name__}"
        ) from error
    return picture


def data_url(path: str | os.PathLike[str], side: int, quality: int) -> str:
    """A picture as a JPEG in a data URL (RFC 2397), shrunk as by `shrunk`.

    Args:
      path: the file.
      side: longer side at most, in pixels.
      quality: of the JPEG, 1 to 95.

    Raises:
      RequestError: if it cannot be read.
    """
    buffer = io.BytesIO()
    shrunk(path, side).save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(
        buffer.getvalue()
    ).decode("ascii")
