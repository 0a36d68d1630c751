"""Images as parts of the page: files, arrays and film strips become data URIs."""

from __future__ import annotations

import base64
import io
import struct
from typing import Any

import numpy as np
from matplotlib.image import imsave

from robopolicy.ranking.tables import Array, RankingError

MAGIC = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
STRIP_ASPECT = 2.5
STRIP_GAP = 3  # pixels between the frames of a strip


def _png(image: Array) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, image, format="png", metadata={"Software": "robopolicy"})
    return buffer.getvalue()


def _strip(frames: Array) -> Array:
    """Frames [T, H, W, C] side by side, uint8 [H, T (W + gap) - gap, C], white between them."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, STRIP_GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-STRIP_GAP]


def encode_image(label: str, image: Any) -> bytes:
    """The file of an image that is PNG, APNG, GIF, JPEG or WebP bytes, uint8 [H, W, C], or a film strip uint8 [T, H, W, C].

    Raises:
        RankingError: it is something else.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] not in (3, 4):
            raise RankingError(
                f"image {label!r} is {image.dtype} {list(image.shape)}; give uint8 [H, W, 3] or a strip [T, H, W, 3]"
            )
        image = _png(_strip(image) if image.ndim == 4 else image)
    if not any(bytes(image[:4]).startswith(magic) for magic in MAGIC):
        raise RankingError(f"image {label!r}: unknown format; give PNG, GIF, JPEG or WebP bytes, or a uint8 array")
    return bytes(image)


def image_kind(image: bytes) -> str:
    """Of what encode_image gave: "png", "gif", "jpeg" or "webp"."""
    return next(name for magic, name in MAGIC.items() if image.startswith(magic))


def _image(label: str, given: Any) -> dict[str, Any]:
    """{"label", "command", "uri", "strip"}; a label may end in a command after a colon."""
    image = encode_image(label, given)
    kind = image_kind(image)
    width, height = 1, 1
    if kind == "png":
        width, height = struct.unpack(">II", image[16:24])
    elif kind == "gif":
        width, height = struct.unpack("<HH", image[6:10])
    uri = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    text, _, command = label.partition(": robopolicy ")
    return {
        "label": text,
        "command": f"robopolicy {command}" if command else "",
        "uri": uri,
        "strip": width > STRIP_ASPECT * height,
    }


def galleries(given: Any) -> list[dict[str, Any]]:
    """[{"title", "caption", "images"}] with every (label, image) embedded. Raises RankingError as encode_image does."""
    shown = []
    for gallery in given:
        pictures = [_image(str(label), image) for label, image in gallery["images"]]
        shown.append({"title": gallery["title"], "caption": gallery.get("caption", ""), "images": pictures})
    return shown
