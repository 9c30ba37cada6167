"""One image as the numbers that a model sees.

What Pillow and torchvision's ImageFolder do by default is done here: transparency is dropped, not blended; an
animation is its first frame; the orientation in EXIF is not applied. 16 bits of gray keep their precision, 16 bits
of color are read as 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bncheck.errors import UnreadableError
from bncheck.wording import quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bncheck.evaluation.data.preprocessing import Preprocessing

# What Pillow may take a file for, whatever its name. Not EPS: Pillow starts Ghostscript on it.
FORMATS = ("JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF")
# 65535 / 255: brings 16-bit pixels to the range of 8-bit ones.
WIDE_STEP = np.float32(257)
BROKEN_HINT = "Replace or remove it, or leave out what cannot be read with --skip-unreadable."


@dataclass(frozen=True, slots=True)
class Picture:
    """One image file, and the index of its class or None."""

    path: str
    name: str
    label: int | None


@cache
def known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_image(picture: Picture, preprocessing: Preprocessing, channels_last: bool) -> NDArray[np.float32]:
    """The image as the model sees it: (C, H, W), or (H, W, C), contiguous.

    Raises:
        UnreadableError: the file is no image, is damaged, or has pixels whose range nobody knows.
    """
    try:
        with Image.open(picture.path, formats=known_formats()) as opened:
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and opened.width * opened.height > most:
                raise too_many_pixels(picture.name, most)
            image = in_color(opened, preprocessing.grayscale)
        return normalise(cut(image, preprocessing), preprocessing, channels_last)
    except UnreadableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels(picture.name, Image.MAX_IMAGE_PIXELS or 0) from error
    except Exception as error:  # Pillow's decoders raise errors of all kinds on damaged files
        said = "" if "cannot identify image file" in str(error) else f": {error or type(error).__name__}"
        raise UnreadableError(f"image {quoted(picture.name)} cannot be read{said}", BROKEN_HINT) from error


def too_many_pixels(name: str, most: int) -> UnreadableError:
    return UnreadableError(
        f"image {quoted(name)} says that it has more than {most:,} pixels, which may be an attack on memory",
        "Make it smaller, or remove it, or leave out what cannot be read with --skip-unreadable.",
    )


def in_color(image: Image.Image, grayscale: bool) -> Image.Image:
    """The image in RGB or gray, 8 bits; a gray image of 16 bits as floating numbers from 0 to 255 (mode F)."""
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if wide:
        return Image.fromarray(np.asarray(image).astype(np.float32) / WIDE_STEP)
    if image.mode in ("I", "F"):
        raise ValueError("it has pixels of 32 bits, whose range is not known; save it with 8 or 16, or as an array")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a palette may hold transparency, which only this conversion understands
    return image.convert("L" if grayscale else "RGB")


def cut(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The image resized and cut, with torchvision's rounding."""
    resize = preprocessing.resize
    if isinstance(resize, int):
        short, long = sorted(image.size)
        longer = int(resize * long / short)
        resize = (longer, resize) if image.width <= image.height else (resize, longer)
    if resize is not None and (resize[1], resize[0]) != image.size:
        image = image.resize((resize[1], resize[0]), Image.Resampling[preprocessing.interpolation.upper()])
    if preprocessing.crop is not None:
        height, width = preprocessing.crop
        left, top = margin(image.width, width), margin(image.height, height)
        image = image.crop((left, top, left + width, top + height))
    return image


def margin(length: int, wanted: int) -> int:
    """Where the middle part begins; negative where black is added before it."""
    return round((length - wanted) / 2) if length >= wanted else -((wanted - length) // 2)


def normalise(image: Image.Image, preprocessing: Preprocessing, channels_last: bool) -> NDArray[np.float32]:
    pixels: Any = np.asarray(image, dtype=np.float32)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], preprocessing.channels, axis=2)
    pixels = pixels / np.float32(preprocessing.divisor)
    pixels -= np.array(preprocessing.mean, np.float32)
    pixels /= np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(pixels if channels_last else pixels.transpose(2, 0, 1))
