"""What a real camera does to light: exposure, lens, sensor noise, image signal processor, compression. With OpenCV."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import cv2
import numpy as np

from robopolicy.geometry import rotvec_matrix
from robopolicy.sim.randomize import World

_LUMA = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709
_quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
_NORMAL_OF_BYTE = (_quantiles / _quantiles.std()).astype(np.float32)


def normals(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise, float32, in 256 steps of equal probability (within 2.9 std): 8 times faster than exact draws."""
    size = math.prod(shape)
    lots = rng.bit_generator.random_raw(-(-size // 8)).view(np.uint8)[:size]
    return cv2.LUT(lots, _NORMAL_OF_BYTE).reshape(shape)


def noisy_image(rgb: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] from a clean uint8 [H, W, 3], as a camera with the parameters sensor.image_* of `world` takes it.

    In the order of a real camera: exposure; lens (blur, motion, vignette); shot and read noise; white balance, hue,
    saturation; contrast and gamma; JPEG. At the nominal parameters the image comes back as it is.
    """
    light = _lens(rgb.astype(np.float32), world)
    levels = _sensor(light, world, rng)
    r, g, b = world.vector("sensor.image_gains").tolist()
    matrix = _colour_matrix(r, g, b, world.scalar("sensor.image_saturation"), world.scalar("sensor.image_hue"))
    if matrix is not None:
        levels = cv2.transform(levels, matrix)
    tone = _tone(world.scalar("sensor.image_contrast"), world.scalar("sensor.image_gamma"))
    if tone is not None:
        levels = cv2.LUT(levels, tone)
    quality = round(world.scalar("sensor.image_jpeg"))
    return levels if quality >= 100 else _jpeg(levels, quality)


def _lens(light: np.ndarray, world: World) -> np.ndarray:
    """float32 [H, W, 3] after the lens, with the exposure."""
    blur, streak = world.scalar("sensor.image_blur"), world.scalar("sensor.image_motion_blur")
    exposure, vignette = world.scalar("sensor.image_brightness"), world.scalar("sensor.image_vignette")
    if blur > 0.05:
        side = 2 * int(np.ceil(3 * blur)) + 1
        light = cv2.GaussianBlur(light, (side, side), blur)
    if streak > 0.05:
        light = cv2.filter2D(light, -1, _streak(streak, world.scalar("sensor.image_motion_angle")))
    if vignette > 0:
        light = cv2.multiply(light, _falloff(light.shape[0], light.shape[1], exposure, vignette))
    elif exposure != 1.0:
        light = light * np.float32(exposure)
    return light


def _sensor(light: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3], rounded and saturated, with noise: variance = read^2 + shot^2 light, of full scale 1."""
    read, shot = world.scalar("sensor.image_noise"), world.scalar("sensor.image_shot_noise")
    if read == 0 and shot == 0:
        return cv2.addWeighted(light, 1.0, light, 0.0, 0.0, dtype=cv2.CV_8U)
    noise = normals(rng, light.shape)
    if shot == 0:
        return cv2.addWeighted(light, 1.0, noise, 255.0 * read, 0.0, dtype=cv2.CV_8U)
    variance = cv2.addWeighted(light, 255.0 * shot**2, light, 0.0, (255.0 * read) ** 2)
    return cv2.add(light, cv2.multiply(noise, cv2.sqrt(variance)), dtype=cv2.CV_8U)


@lru_cache(maxsize=32)
def _streak(length: float, angle: float) -> np.ndarray:
    """Kernel [S, S] of a motion by `length` px in the direction `angle` (rad)."""
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    along = (np.arange(64) + 0.5) / 64 * length - length / 2
    x, y = half + along * np.cos(angle), half + along * np.sin(angle)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - dy - (y - row)) * np.abs(1 - dx - (x - column))
        inside = (row + dy <= 2 * half) & (column + dx <= 2 * half)
        np.add.at(kernel, (row[inside] + dy, column[inside] + dx), weight[inside])
    return kernel / kernel.sum()


@lru_cache(maxsize=32)
def _falloff(height: int, width: int, exposure: float, vignette: float) -> np.ndarray:
    """Share of the light [H, W, 3] that arrives: `exposure` in the middle, less by the square of the distance from it."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.repeat((exposure * (1.0 - vignette * (x**2 + y**2) / 2))[..., None], 3, axis=-1).astype(np.float32)


@lru_cache(maxsize=32)
def _colour_matrix(r: float, g: float, b: float, saturation: float, hue: float) -> np.ndarray | None:
    """float32 [3, 3]: white balance by gains, then hue about the grey axis, then saturation; None = identity."""
    if (r, g, b, saturation, hue) == (1.0, 1.0, 1.0, 1.0, 0.0):
        return None
    saturate = saturation * np.eye(3) + (1 - saturation) * _LUMA
    return (saturate @ rotvec_matrix(hue * np.full(3, 3**-0.5)) @ np.diag([r, g, b])).astype(np.float32)


@lru_cache(maxsize=32)
def _tone(contrast: float, gamma: float) -> np.ndarray | None:
    """Tone curve, uint8 [256]; None = identity."""
    if contrast == 1.0 and gamma == 1.0:
        return None
    x = np.clip((np.arange(256) / 255 - 0.5) * contrast + 0.5, 0.0, 1.0) ** gamma
    return np.round(255 * x).astype(np.uint8)


def _jpeg(rgb: np.ndarray, quality: int) -> np.ndarray:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError(f"OpenCV cannot read its own JPEG of an image {rgb.shape}")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
