"""A bank of procedural textures, the same on every run: enough variety for visual randomisation, no files to ship.

All of them tile: every pattern is periodic in both directions. They are bright, because the rasteriser multiplies them
by the colour of the surface.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

TEXTURE_SIZE = 64
NUM_TEXTURES = 48
CHANNEL = 21  # bits of a colour channel in a texel of the pyramid

Pattern = Callable[[np.random.Generator], np.ndarray]  # values in [0, 1], float64 [TEXTURE_SIZE, TEXTURE_SIZE]
Colour = tuple[float, float, float]

_V, _U = np.meshgrid(np.arange(TEXTURE_SIZE) / TEXTURE_SIZE, np.arange(TEXTURE_SIZE) / TEXTURE_SIZE, indexing="ij")


def _unit(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (x.max() - x.min())


def _noise(rng: np.random.Generator, wavelengths: float, roughness: float = 1.5, stretch: float = 1.0) -> np.ndarray:
    """Periodic noise in [0, 1]: white noise shaped in the Fourier domain, flat up to `wavelengths` a tile and falling as
    f^-roughness beyond; stretch > 1 draws it out along u.
    """
    f_v, f_u = np.meshgrid(*2 * [np.fft.fftfreq(TEXTURE_SIZE, 1 / TEXTURE_SIZE)], indexing="ij")
    f = np.hypot(f_v / np.sqrt(stretch), f_u * np.sqrt(stretch))
    gain = (1 + (f / wavelengths) ** 2) ** (-roughness)
    gain[0, 0] = 0
    return _unit(np.fft.ifft2(np.fft.fft2(rng.standard_normal(f.shape)) * gain).real)


def _wave(phase: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(2 * np.pi * phase)


def _wood(rings: int, warp: float, grain: float) -> Pattern:
    """Grain along u: warped rings across v, with fine streaks on top."""

    def pattern(rng: np.random.Generator) -> np.ndarray:
        figure = _wave(rings * _V + warp * _noise(rng, 1.5, 2.5, stretch=4))
        return (1 - grain) * figure + grain * _noise(rng, 12, 1.0, stretch=30)

    return pattern


def _planks(boards: int) -> Pattern:
    def pattern(rng: np.random.Generator) -> np.ndarray:
        board = np.floor(_V * boards).astype(int)
        tone = rng.permutation(np.linspace(0.2, 0.8, boards))[board]
        seam = np.minimum((_V * boards) % 1, 1 - (_V * boards) % 1) < 0.06
        return np.where(seam, 1.0, 0.6 * tone + 0.4 * _noise(rng, 8, 1.0, stretch=25))

    return pattern


def _checker(cells: int) -> Pattern:
    return lambda rng: (np.floor(_U * cells) + np.floor(_V * cells)) % 2


def _stripes(along_u: int, along_v: int, sharpness: float) -> Pattern:
    return lambda rng: np.clip(0.5 + sharpness * (_wave(along_u * _U + along_v * _V) - 0.5), 0, 1)


def _blobs(wavelengths: float, sharpness: float) -> Pattern:
    def pattern(rng: np.random.Generator) -> np.ndarray:
        noise = _noise(rng, wavelengths, 3.0)
        return np.clip(0.5 + sharpness * (noise - np.median(noise)), 0, 1)

    return pattern


def _marble(veins: int, warp: float) -> Pattern:
    return lambda rng: np.abs(np.sin(np.pi * (veins * (_U + _V) + warp * _noise(rng, 2.5, 1.3)))) ** 0.6


def _gradient(along_u: int, along_v: int) -> Pattern:
    return lambda rng: 0.85 * _wave(along_u * _U + along_v * _V) + 0.15 * _noise(rng, 6)


def _dots(cells: int, radius: float) -> Pattern:
    def pattern(rng: np.random.Generator) -> np.ndarray:
        distance = np.hypot((_U * cells) % 1 - 0.5, (_V * cells) % 1 - 0.5)
        return np.clip((radius - distance) * TEXTURE_SIZE / cells + 0.5, 0, 1)

    return pattern


def _bricks(rows: int) -> Pattern:
    def pattern(rng: np.random.Generator) -> np.ndarray:
        row = np.floor(_V * rows)
        u, v = (_U * rows / 2 + 0.5 * (row % 2)) % 1, (_V * rows) % 1
        joint = (np.minimum(u, 1 - u) < 0.04) | (np.minimum(v, 1 - v) < 0.08)
        return np.where(joint, 1.0, 0.45 * _noise(rng, 8))

    return pattern


def _weave(threads: int) -> Pattern:
    def pattern(rng: np.random.Generator) -> np.ndarray:
        over = (np.floor(_U * threads) + np.floor(_V * threads)) % 2 == 0
        return np.where(over, np.sin(np.pi * ((_V * threads) % 1)), 0.6 * np.sin(np.pi * ((_U * threads) % 1)))

    return pattern


def _speckle(share: float) -> Pattern:
    def pattern(rng: np.random.Generator) -> np.ndarray:
        noise = _noise(rng, 14, 3.0)
        return np.clip(0.3 * _noise(rng, 3) + (noise > np.quantile(noise, 1 - share)), 0, 1)

    return pattern


def _cells(count: int, border: float) -> Pattern:
    """Voronoi cells of random points, each of one tone, with `border` (share of a tile) between them: pebbles, terrazzo."""

    def pattern(rng: np.random.Generator) -> np.ndarray:
        points, tones = rng.random((count, 2)), rng.random(count)
        apart = np.abs(np.stack([_U, _V], axis=-1)[:, :, None] - points)
        distance = np.linalg.norm(np.minimum(apart, 1 - apart), axis=-1)
        first, second = np.sort(distance, axis=-1)[..., :2].transpose(2, 0, 1)
        return np.where(second - first < border, 1.0, 0.75 * tones[distance.argmin(axis=-1)])

    return pattern


def _hexagons(columns: int) -> Pattern:
    """Hexagonal tiles, three tones in turn, with joints."""

    def pattern(rng: np.random.Generator) -> np.ndarray:
        rows = 2 * round(columns / np.sqrt(3))  # of half a tile, so that it closes on itself
        i, j = (a.reshape(-1) for a in np.meshgrid(np.arange(columns), np.arange(rows)))
        centres = np.column_stack([(i + 0.5 * (j % 2)) / columns, j / rows])
        apart = np.abs(np.stack([_U, _V], axis=-1)[:, :, None] - centres)
        distance = np.linalg.norm(np.minimum(apart, 1 - apart) * [1.0, rows * np.sqrt(3) / 2 / columns], axis=-1)
        first, second = np.sort(distance, axis=-1)[..., :2].transpose(2, 0, 1)
        tone = rng.permutation(len(centres))[distance.argmin(axis=-1)] % 3
        return np.where(second - first < 0.09 / columns, 1.0, 0.3 * tone)

    return pattern


def _zigzag(repeats: int, teeth: int, sharpness: float) -> Pattern:
    return lambda rng: np.clip(0.5 + sharpness * (_wave(repeats * _V + np.abs((teeth * _U) % 1 - 0.5)) - 0.5), 0, 1)


def _rings(cells: int, repeats: float) -> Pattern:
    """Concentric circles in every cell."""
    return lambda rng: _wave(repeats * np.hypot((_U * cells) % 1 - 0.5, (_V * cells) % 1 - 0.5) * 2)


def _plaid(along_u: tuple[int, ...], along_v: tuple[int, ...]) -> Pattern:
    """Tartan: square waves of several numbers across each direction, woven."""

    def pattern(rng: np.random.Generator) -> np.ndarray:
        bands = [(_wave(n * _U) > 0.6) for n in along_u] + [(_wave(n * _V) > 0.6) for n in along_v]
        return 0.9 * _unit(np.sum(bands, axis=0)) + 0.1 * _noise(rng, 20, 0.5)

    return pattern


def _fabric(threads: int) -> Pattern:
    """Fine cloth: thin threads across each other over soft folds."""
    return lambda rng: 0.35 * _wave(threads * _U) + 0.35 * _wave(threads * _V) + 0.3 * _noise(rng, 2, 2.5)


def _confetti(count: int, size: float) -> Pattern:
    """Scattered squares, turned at random, of random tones."""

    def pattern(rng: np.random.Generator) -> np.ndarray:
        out = np.zeros_like(_U)
        for x, y, angle, tone in rng.random((count, 4)):
            dx, dy = (_U - x + 0.5) % 1 - 0.5, (_V - y + 0.5) % 1 - 0.5
            c, s = np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)
            out[np.maximum(np.abs(c * dx + s * dy), np.abs(c * dy - s * dx)) < size] = 0.3 + 0.7 * tone
        return out

    return pattern


def _contours(wavelengths: float, lines: int) -> Pattern:
    """Lines of equal height of a landscape."""
    return lambda rng: np.clip(1.6 * np.abs(_wave(lines * _noise(rng, wavelengths, 2.5)) - 0.5), 0, 1)


_BANK: tuple[tuple[Pattern, Colour, Colour], ...] = (
    (_wood(3, 2.0, 0.55), (1.0, 0.93, 0.84), (0.80, 0.69, 0.57)),
    (_wood(5, 3.0, 0.4), (0.95, 0.80, 0.60), (0.62, 0.42, 0.26)),
    (_wood(2, 4.0, 0.7), (0.72, 0.58, 0.48), (0.42, 0.30, 0.24)),
    (_planks(4), (0.98, 0.88, 0.74), (0.55, 0.42, 0.32)),
    (_planks(8), (0.80, 0.82, 0.84), (0.45, 0.46, 0.48)),
    (_checker(4), (1.0, 1.0, 1.0), (0.35, 0.35, 0.38)),
    (_checker(8), (1.0, 0.95, 0.80), (0.55, 0.20, 0.18)),
    (_checker(2), (0.70, 0.85, 1.0), (0.95, 0.95, 0.90)),
    (_stripes(0, 4, 4.0), (1.0, 1.0, 1.0), (0.30, 0.45, 0.75)),
    (_stripes(6, 0, 1.0), (1.0, 0.90, 0.70), (0.85, 0.55, 0.30)),
    (_stripes(5, 5, 6.0), (0.95, 0.95, 0.55), (0.35, 0.35, 0.30)),
    (_blobs(3.0, 3.0), (0.80, 0.95, 0.75), (0.35, 0.55, 0.35)),
    (_blobs(5.0, 8.0), (1.0, 0.85, 0.90), (0.65, 0.35, 0.55)),
    (_blobs(10.0, 2.0), (0.95, 0.95, 0.95), (0.60, 0.60, 0.62)),
    (_marble(1, 3.0), (0.55, 0.58, 0.62), (1.0, 1.0, 0.98)),
    (_marble(2, 2.0), (0.25, 0.35, 0.32), (0.60, 0.80, 0.72)),
    (_gradient(1, 0), (1.0, 0.75, 0.60), (0.60, 0.70, 1.0)),
    (_gradient(1, 1), (0.75, 1.0, 0.90), (0.95, 0.80, 1.0)),
    (_dots(4, 0.3), (1.0, 0.95, 0.90), (0.85, 0.25, 0.25)),
    (_dots(8, 0.35), (0.45, 0.60, 0.85), (1.0, 1.0, 1.0)),
    (_bricks(6), (0.85, 0.50, 0.40), (0.95, 0.92, 0.88)),
    (_weave(10), (0.70, 0.62, 0.48), (1.0, 0.95, 0.82)),
    (_speckle(0.12), (0.95, 0.94, 0.90), (0.40, 0.38, 0.36)),
    (_wood(1, 0.5, 0.9), (0.98, 0.98, 1.0), (0.70, 0.72, 0.76)),
    (_cells(24, 0.03), (0.62, 0.66, 0.72), (0.97, 0.96, 0.92)),
    (_cells(70, 0.015), (0.98, 0.92, 0.85), (0.55, 0.45, 0.40)),
    (_cells(9, 0.0), (0.50, 0.75, 0.95), (1.0, 0.70, 0.55)),
    (_hexagons(4), (0.88, 0.93, 0.96), (0.40, 0.48, 0.55)),
    (_hexagons(7), (1.0, 0.82, 0.45), (0.62, 0.36, 0.20)),
    (_zigzag(4, 2, 5.0), (0.95, 0.97, 1.0), (0.25, 0.55, 0.62)),
    (_zigzag(6, 4, 1.2), (1.0, 0.85, 0.75), (0.75, 0.40, 0.45)),
    (_rings(1, 4.0), (1.0, 0.97, 0.90), (0.70, 0.35, 0.30)),
    (_rings(3, 2.0), (0.60, 0.80, 0.60), (0.98, 0.98, 0.85)),
    (_plaid((2, 5), (2, 5)), (0.95, 0.92, 0.85), (0.65, 0.20, 0.22)),
    (_plaid((4,), (4, 7)), (0.85, 0.92, 1.0), (0.28, 0.38, 0.62)),
    (_plaid((8,), (8,)), (1.0, 1.0, 0.95), (0.70, 0.72, 0.65)),
    (_fabric(16), (0.80, 0.84, 0.90), (0.48, 0.54, 0.66)),
    (_fabric(8), (0.98, 0.88, 0.80), (0.72, 0.52, 0.46)),
    (_confetti(40, 0.05), (0.98, 0.96, 0.92), (0.85, 0.35, 0.55)),
    (_confetti(90, 0.025), (0.72, 0.78, 0.84), (1.0, 0.95, 0.60)),
    (_contours(2.5, 5), (0.55, 0.75, 0.55), (0.96, 0.94, 0.80)),
    (_contours(5.0, 3), (0.95, 0.95, 1.0), (0.45, 0.42, 0.68)),
    (_bricks(4), (0.70, 0.72, 0.74), (0.92, 0.92, 0.90)),
    (_checker(16), (0.96, 0.96, 0.92), (0.48, 0.60, 0.52)),
    (_stripes(3, 1, 1.0), (0.98, 0.90, 0.98), (0.60, 0.50, 0.80)),
    (_dots(2, 0.38), (0.98, 0.85, 0.40), (0.35, 0.55, 0.80)),
    (_marble(3, 4.0), (0.72, 0.48, 0.42), (0.98, 0.90, 0.84)),
    (_gradient(0, 2), (0.98, 0.98, 0.90), (0.55, 0.78, 0.98)),
)


@lru_cache(maxsize=1)
def texture_bank() -> np.ndarray:
    """All textures, uint8 [NUM_TEXTURES, TEXTURE_SIZE, TEXTURE_SIZE, 3], read-only. Number 0 is a calm wood."""
    bank = np.empty((NUM_TEXTURES, TEXTURE_SIZE, TEXTURE_SIZE, 3), np.uint8)
    for i, (pattern, low, high) in enumerate(_BANK):
        mix = pattern(np.random.default_rng(i))[..., None]
        bank[i] = np.round(255 * np.clip((1 - mix) * np.array(low) + mix * np.array(high), 0, 1))
    bank.flags.writeable = False
    return bank


@lru_cache(maxsize=1)
def texture_pyramid() -> np.ndarray:
    """The bank with its halvings, red | green << CHANNEL | blue << 2 CHANNEL, int64 [NUM_TEXTURES, 2 S S], S = TEXTURE_SIZE.

    As rows of S texels; level l is in those from 2 S - (2 S >> l) on. One multiplication then weighs all three channels.
    """
    pyramid = np.zeros((NUM_TEXTURES, 2 * TEXTURE_SIZE, TEXTURE_SIZE), np.int64)
    level, start = texture_bank().astype(np.float32), 0
    while True:
        side = level.shape[1]
        red, green, blue = np.moveaxis(np.round(level).astype(np.int64), -1, 0)
        pyramid[:, start : start + side, :side] = red | green << CHANNEL | blue << 2 * CHANNEL
        if side == 1:
            return pyramid.reshape(NUM_TEXTURES, -1)
        start += side
        level = level.reshape(NUM_TEXTURES, side // 2, 2, side // 2, 2, 3).mean(axis=(2, 4))
