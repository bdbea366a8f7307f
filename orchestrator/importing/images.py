"""Photos and drawings: Pillow decodes, the result is square RGB of one size."""

import io
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from orchestrator.importing.kinds import Broken, at_least, check_pixels, check_sample_bytes

Fit = Literal["crop", "squash"]
Encoding = Literal["raw", "jpeg", "png"]

_JPEG_QUALITY = 95
_SMALLER = {"raw": 1, "jpeg": 6, "png": 2}  # than raw, about


@dataclass(frozen=True)
class Images:
    """Samples (size, size, 3) uint8.

    Photos are turned upright as their EXIF says; every mode becomes RGB (transparency is dropped,
    16-bit grey is scaled); only the first picture of an animation counts.
    """

    NAME: ClassVar[str] = "images"
    SUFFIXES: ClassVar[frozenset[str]] = frozenset(
        {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    )
    VERSION: ClassVar[int] = 1

    size: int = 224
    fit: Fit = "crop"
    encoding: Encoding = "raw"

    def __post_init__(self) -> None:
        at_least("--size", self.size, 1)
        check_sample_bytes(3 * self.size**2, f"--size {self.size}")

    def declared(self) -> dict[str, Any]:
        """See `Kind`."""
        said: dict[str, Any] = {
            "modality": "image",
            "dtype": "uint8",
            "shape": [self.size, self.size, 3],
            "layout": "HWC RGB",
        }
        return said if self.encoding == "raw" else said | {"encoding": self.encoding}

    @property
    def typical_bytes(self) -> int:
        """See `Kind`."""
        return max(1, 3 * self.size**2 // _SMALLER[self.encoding])

    def sample(self, content: bytes, suffix: str, seed: int) -> bytes:
        """See `Kind`."""
        del suffix, seed  # the content says what it is, and nothing is drawn
        try:
            with Image.open(io.BytesIO(content)) as opened:
                check_pixels(*opened.size)
                upright = ImageOps.exif_transpose(opened)
        except UnidentifiedImageError as error:
            raise Broken("no image that can be read") from error
        except Image.DecompressionBombError as error:  # Pillow's own limit, where it is lower
            raise Broken(f"more pixels than are decoded: {error}") from error
        return self._encoded(squared(as_rgb(upright), self.size, self.fit))

    def _encoded(self, image: Image.Image) -> bytes:
        if self.encoding == "raw":
            return np.asarray(image).tobytes()
        made = io.BytesIO()
        if self.encoding == "jpeg":
            image.save(made, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        else:
            image.save(made, "PNG")
        return made.getvalue()


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB. Raises Broken for what has no range of its own."""
    if image.mode.startswith("I;16"):
        # Pillow would clip them: everything above 255 would be white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Broken(f"pixels of mode {image.mode}, whose range is unknown: store 8 or 16 bits")
    return image.convert("RGB")


def squared(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """The image of size × size pixels.

    "crop" brings the shorter side to `size` and takes the middle of the longer one; "squash" keeps
    all of the image and gives up its proportions.
    """
    if fit == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
