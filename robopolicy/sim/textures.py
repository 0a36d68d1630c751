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


def _cells(count: int, edges: bool) -> Pattern:
    """Voronoi cells of random points: tones of their own, or their edges."""

    def pattern(rng: np.random.Generator) -> np.ndarray:
        points = rng.random((count, 2))
        apart = [np.abs(axis[..., None] - points[:, i]) for i, axis in enumerate((_U, _V))]
        distance = np.hypot(*(np.minimum(d, 1 - d) for d in apart))
        nearest = np.sort(distance, axis=-1)
        if edges:
            return np.clip((nearest[..., 1] - nearest[..., 0]) * np.sqrt(count) * 4, 0, 1)
        return rng.permutation(np.linspace(0, 1, count))[distance.argmin(axis=-1)]

    return pattern


def _chevrons(columns: int, rows: int) -> Pattern:
    return lambda rng: np.clip(0.5 + 4 * (_wave(rows * _V + np.abs(2 * ((_U * columns) % 1) - 1)) - 0.5), 0, 1)


def _rings(cells: int, rings: int) -> Pattern:
    """Circles about the middle of every cell."""
    return lambda rng: _wave(rings * np.hypot((_U * cells) % 1 - 0.5, (_V * cells) % 1 - 0.5) * 2)


def _plaid(u: tuple[int, ...], v: tuple[int, ...]) -> Pattern:
    """Bands across each other, of several wavelengths."""
    return lambda rng: _unit(sum(_wave(n * _U) > 0.6 for n in u) + sum(_wave(n * _V) > 0.6 for n in v) + 0.3 * _noise(rng, 20))


def _grid(cells: int, width: float) -> Pattern:
    def pattern(rng: np.random.Generator) -> np.ndarray:
        u, v = ((axis * cells) % 1 for axis in (_U, _V))
        line = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v)) < width / 2
        return np.where(line, 1.0, 0.35 * _noise(rng, 4))

    return pattern


def _ripples(count: int) -> Pattern:
    """Contour lines of a smooth landscape."""
    return lambda rng: _wave(count * _noise(rng, 2.0, 2.5))


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
    # From here on reserved for held_out: patterns that none of the first 24 has.
    (_cells(14, edges=False), (0.95, 0.90, 0.80), (0.55, 0.45, 0.38)),
    (_cells(30, edges=True), (0.35, 0.33, 0.32), (0.90, 0.88, 0.84)),
    (_cells(60, edges=False), (0.60, 0.80, 0.95), (0.95, 0.98, 1.0)),
    (_cells(9, edges=True), (1.0, 0.95, 0.90), (0.75, 0.45, 0.35)),
    (_cells(120, edges=True), (0.45, 0.60, 0.40), (0.85, 0.95, 0.70)),
    (_chevrons(2, 4), (0.95, 0.95, 0.98), (0.40, 0.50, 0.60)),
    (_chevrons(4, 8), (1.0, 0.85, 0.55), (0.60, 0.35, 0.45)),
    (_chevrons(1, 2), (0.70, 0.90, 0.85), (0.95, 0.75, 0.70)),
    (_rings(1, 4), (1.0, 0.97, 0.90), (0.60, 0.50, 0.75)),
    (_rings(2, 2), (0.90, 0.60, 0.55), (1.0, 0.95, 0.85)),
    (_rings(4, 1), (0.55, 0.75, 0.70), (0.98, 1.0, 0.92)),
    (_rings(3, 3), (0.35, 0.40, 0.55), (0.80, 0.85, 0.95)),
    (_plaid((1, 3), (1, 3)), (0.98, 0.95, 0.90), (0.65, 0.25, 0.25)),
    (_plaid((2, 5), (2, 5)), (0.90, 0.95, 0.90), (0.25, 0.45, 0.35)),
    (_plaid((4,), (1, 8)), (0.95, 0.90, 0.70), (0.40, 0.40, 0.65)),
    (_plaid((7, 9), (6, 8)), (0.80, 0.80, 0.82), (0.50, 0.48, 0.46)),
    (_grid(4, 0.1), (0.92, 0.94, 0.96), (0.45, 0.48, 0.52)),
    (_grid(8, 0.16), (0.70, 0.85, 0.95), (1.0, 1.0, 1.0)),
    (_grid(2, 0.06), (0.90, 0.82, 0.72), (0.50, 0.40, 0.32)),
    (_grid(12, 0.3), (0.55, 0.52, 0.50), (0.95, 0.92, 0.85)),
    (_ripples(4), (0.95, 0.85, 0.70), (0.65, 0.50, 0.40)),
    (_ripples(8), (0.75, 0.90, 0.95), (0.35, 0.50, 0.60)),
    (_ripples(2), (0.90, 0.75, 0.90), (0.55, 0.70, 0.55)),
    (_ripples(12), (1.0, 1.0, 0.97), (0.55, 0.55, 0.58)),
)


@lru_cache(maxsize=1)
def texture_bank() -> np.ndarray:
    """All textures, uint8 [NUM_TEXTURES, TEXTURE_SIZE, TEXTURE_SIZE, 3], read-only. Number 0 is a calm wood;
    the second half looks like nothing in the first."""
    bank = np.empty((NUM_TEXTURES, TEXTURE_SIZE, TEXTURE_SIZE, 3), np.uint8)
    for i, (pattern, low, high) in enumerate(_BANK):
        mix = pattern(np.random.default_rng(i))[..., None]
        bank[i] = np.round(255 * np.clip((1 - mix) * np.array(low) + mix * np.array(high), 0, 1))
    bank.flags.writeable = False
    return bank
