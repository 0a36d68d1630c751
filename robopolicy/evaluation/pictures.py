"""Arrays as pictures for people: contact sheets, colours for depth and segmentation, videos."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robopolicy.files import atomic_write
from robopolicy.sim.scene import BACKGROUND
from robopolicy.spec import Array

_CAPTION, _GAP = 16, 6  # px
_INK = (30, 30, 30)


def contact_sheet(
    rows: Sequence[Sequence[Array]], captions: Sequence[str], columns: int, inks: Sequence[tuple[int, int, int]] = ()
) -> Array:
    """One picture uint8 [H, W, 3] of groups of pictures: group i is rows[i] side by side, captions[i] above it.

    rows: pictures uint8 [h, w, 3] of equal height and width. columns: groups beside each other.
    inks: colour of each caption.
    """
    groups = [np.concatenate([np.asarray(picture) for picture in row], axis=1) for row in rows]
    height, width = groups[0].shape[0] + _CAPTION + _GAP, max(group.shape[1] for group in groups) + _GAP
    columns = max(1, min(columns, len(groups)))
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(groups) // columns) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (group, caption) in enumerate(zip(groups, captions, strict=True)):
        x, y = _GAP + i % columns * width, _GAP + i // columns * height
        while len(caption) > 1 and draw.textlength(caption, font=font) > width - _GAP:
            caption = caption[:-2] + "…"
        draw.text((x, y), caption, fill=inks[i] if inks else _INK, font=font)
        sheet.paste(Image.fromarray(group), (x, y + _CAPTION))
    return np.asarray(sheet)


def colour_depth(depth: Array, near: float = 0.0, far: float = 2.0) -> Array:
    """Depth float32 [..., H, W] (m) as uint8 [..., H, W, 3]: near to far is bright to dark, nothing measured is black."""
    import matplotlib as mpl

    share = np.clip((np.asarray(depth) - near) / (far - near), 0.0, 1.0)
    colours = (mpl.colormaps["viridis"](1.0 - share)[..., :3] * 255).astype(np.uint8)
    return np.where((np.asarray(depth) > 0)[..., None], colours, 0).astype(np.uint8)


def colour_segmentation(segmentation: Array) -> Array:
    """Segmentation uint8 [..., H, W] in colours uint8 [..., H, W, 3], one per id, the background black."""
    import matplotlib as mpl

    palette = (mpl.colormaps["tab10"](np.arange(10))[:, :3] * 255).astype(np.uint8)
    colours = palette[np.asarray(segmentation) % len(palette)]
    return np.where((np.asarray(segmentation) != BACKGROUND)[..., None], colours, 0).astype(np.uint8)


def enlarged(frames: Array, least: int) -> Array:
    """Pictures [..., H, W, 3] with every pixel repeated until H is at least `least`."""
    times = max(1, -(-least // frames.shape[-3]))
    return frames.repeat(times, axis=-3).repeat(times, axis=-2)


def png(picture: Array) -> bytes:
    """A picture uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def gif(frames: Array, milliseconds: int = 100) -> bytes:
    """An endless animation of frames uint8 [T, H, W, 3]; the last one stays for a second."""
    images = [Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in frames]
    durations = [milliseconds] * (len(images) - 1) + [1000]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()


def write_video(path: Path, frames: Array, fps: float) -> Path:
    """Write frames uint8 [T, H, W, 3] beside `path` as .mp4 (H.264), or as .gif where av is not installed; the file."""
    try:
        import av  # noqa: F401
    except ImportError:
        path = path.with_suffix(".gif")
        atomic_write(path, gif(frames, milliseconds=round(1000 / fps)))
    else:
        path = path.with_suffix(".mp4")
        atomic_write(path, _mp4(frames, fps))
    return path


def _mp4(frames: Array, fps: float) -> bytes:
    import av

    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # 4:2:0 needs even sides
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
