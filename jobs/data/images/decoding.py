"""One encoded image, PNG, JPEG or whatever else PIL reads, as a person sees it.

It is upright (EXIF), on white where it is transparent, and whole: what PIL would fill up or cut off is refused.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.data.formats import short
from jobs.data.remedies import NEVER, of_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""

_ABOUT_TURNS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
"""Where PIL keeps what may say so."""

_GREY = ("1", "L", "LA", "La", "I", "F")
"""How the modes of images without colour begin."""

_MALFORMED = (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError, struct.error)
"""What PIL raises on parts of a file that are not the picture."""

_PNG_PALETTE = 3
_PNG = b"\x89PNG\r\n\x1a\n"


class Undecodable(ValueError):
    """These bytes are no image that can be read. Says what they are, and what would work."""


def is_coloured(content: bytes) -> bool:
    """Return whether an image has colours, by its header; a palette has some unless it is all grey. Raises
    Undecodable."""
    if content.startswith(_PNG) and content[12:16] == b"IHDR" and len(content) > 25 and content[25] != _PNG_PALETTE:
        return bool(content[25] & 2)
    with _words(content):
        image = _opened(content)
        if image.mode in ("P", "PA"):
            shades = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            return bool((shades != shades[:, :1]).any())
        return image.mode not in _GREY and not image.mode.startswith(("I;", "F;"))


def decoded(content: bytes, channels: int) -> Picture:
    """Decode an image to a PIL image of mode L or RGB, by `channels`. Raises Undecodable."""
    with _words(content):
        image = _opened(content)
        if image.mode.startswith(("I", "F")):
            raise Undecodable(
                f"has more than 8 bits a channel (mode {image.mode}), and nothing says which number is white; scale it "
                "to 8 bits, or give an array of fractions"
            )
        if image.format == "PNG":
            _refuse_other_pixels(content)
        image.load()
        image = _on_white(_upright(image))
        mode = "L" if channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)


def resized(image: Picture, height: int, width: int) -> NDArray[np.uint8]:
    """Scale a PIL image of mode L or RGB to this size; return uint8 [H, W, C]."""
    if image.size != (width, height):
        from PIL import Image

        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(height, width, -1)


def peculiarities(content: bytes) -> Iterator[str]:
    """Yield what is left out of a readable image, or is read in a way that a person should know of."""
    with _words(content):
        image = _opened(content)
        depth = content[24] if image.format == "PNG" else max(getattr(image, "tag_v2", {}).get(258, (8,)))
        if depth > 8:
            yield "have 16 bits a channel, of which the upper 8 are read"
        if image.has_transparency_data and _is_transparent(image.convert("RGBA")):
            yield "are transparent in places, where they are laid on white"
    if image.format == "MPO":  # a photograph beside which a camera keeps others
        return
    try:
        more = getattr(image, "is_animated", False)
    except _MALFORMED:  # there is something behind the first, which is all that counts
        more = True
    if more:
        yield "have several frames or pages, of which the first is read"


@contextlib.contextmanager
def _words(content: bytes) -> Iterator[None]:
    """Turn whatever a decoder of PIL raises on damaged bytes into Undecodable: each has exceptions of its own."""
    from PIL import Image

    try:
        yield
    except (Undecodable, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Undecodable(
            f"is larger than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels that are read of an image, as small "
            "files made to fill a memory are; scale it down, or remove the row"
        ) from error
    except Exception as error:
        raise Undecodable(f"is no readable image ({_reason(content, error)}); replace it, or remove the row") from error


def _reason(content: bytes, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if not isinstance(error, UnidentifiedImageError):
        return f"cut short or damaged: {short(error)}"
    start, what = content[:40], of_bytes(content)
    return f"it begins with {(start.decode() if start.isascii() else start)!r}{f': {what}' if what else ''}"


def _opened(content: bytes) -> Picture:
    """Open a PIL image; only its header is read."""
    from PIL import Image, ImageFile

    if not content:
        raise Undecodable("is an empty file (0 bytes); replace it, or remove the row")
    if content.startswith(NEVER):
        raise Undecodable(f"is {of_bytes(content)}; or remove the row")
    # Another package may have set it, and PIL would fill up what is missing.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # What is too large is refused in words, and of what is nearly so nothing is to be said.
    if not any(kind is Image.DecompressionBombWarning for _, _, kind, _, _ in warnings.filters):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return Image.open(io.BytesIO(content))


def _refuse_other_pixels(png: bytes) -> None:
    """Raise ValueError where the pixels of a PNG file do not fit its checksums. PIL compares those of the rest."""
    at = len(_PNG)
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        name, end = png[at + 4 : at + 8], at + 8 + length
        if name == b"IDAT" and png[end : end + 4] != struct.pack(">I", zlib.crc32(memoryview(png)[at + 4 : end])):
            raise ValueError("its pixels do not fit their checksum")
        at = end + 4


def _upright(image: Picture) -> Picture:
    """Turn the image as its EXIF orientation says; PIL has already done so for TIFF."""
    from PIL import Image

    if not _ABOUT_TURNS & image.info.keys():
        return image
    try:
        orientation = image.getexif().get(ORIENTATION)
    except _MALFORMED:
        return image  # notes that cannot be read turn nothing, in any program that shows images
    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if isinstance(orientation, int) and orientation in turns else image


def _on_white(image: Picture) -> Picture:
    """Remove the transparency of an image by laying it on white; return it as it is where it has none."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    layers = image.convert("RGBA")
    if _is_transparent(layers):
        layers = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    return layers.convert("RGB")


def _is_transparent(layers: Picture) -> bool:
    """Return whether an image of mode RGBA is transparent anywhere."""
    least, _ = layers.getchannel("A").getextrema()
    return isinstance(least, int | float) and least < 255
