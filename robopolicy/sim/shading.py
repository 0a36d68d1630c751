"""The colour of every pixel, compiled by numba. Conventions as in kernels.py; all directions are in the camera's frame."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from robopolicy.sim.kernels import HALF, NO_FACE, ONE, OPTIONS, TABLE_FACE, ZERO
from robopolicy.sim.textures import CHANNEL, TEXTURE_SIZE

QUARTER, TWO, LARGEST, TINY = np.float32(0.25), np.float32(2), np.float32(255), np.float32(1e-12)
FRACTION = 12  # bits of the weights that texels are multiplied with: no more than CHANNEL - 8
UNIT = 1 << FRACTION  # a texel, in the fixed-point numbers that textures are sampled at
UNITS = np.float32(TEXTURE_SIZE << FRACTION)
FULL = np.float32(1 / (255 << FRACTION))
SAME_SURFACE = np.float32(0.9)  # cosine between two faces of a mesh from which on a pixel does not tell them apart
DULL = np.float32(0.6)  # cosine below which there is no highlight: 0.6 ** 24 < 1e-5

_kernel = numba.njit(cache=True, **OPTIONS)
_inline = numba.njit(forceinline=True, **OPTIONS)


class Looks(NamedTuple):
    """Colour and texture (-1: none) of K meshes, rgb float32 [K, 3] and texture [K], and of the background; the textures as
    a pyramid, see textures.texture_pyramid(); sky: background textures per radian.
    """

    rgb: np.ndarray
    texture: np.ndarray
    background_rgb: np.ndarray
    background_texture: int
    sky: float
    pyramid: np.ndarray


class Lamp(NamedTuple):
    """The directional light. axes float64 [3, 3]: columns and rows of its shadow map, and the unit vector towards it, in the
    base frame; the rest is as in scene.Light.
    """

    axes: np.ndarray
    rgb: np.ndarray
    ambient: float
    diffuse: float
    specular: float
    shadow: float


class Shadows(NamedTuple):
    """What kernels.cast() has drawn; texel (m) is 0 where nothing casts a shadow."""

    map: np.ndarray
    from_cam: np.ndarray
    columns: int
    rows: int
    texel: float


@_inline
def _texel(texels, x, y, level):
    """Bilinear sample of a level of a texture in units of FULL, at (x, y) in UNITs of the finest level, wrapped around."""
    size = TEXTURE_SIZE >> level
    x, y = (x >> level) - (UNIT >> 1), (y >> level) - (UNIT >> 1)
    a, b = x & (UNIT - 1), y & (UNIT - 1)
    x0, y0 = x >> FRACTION & (size - 1), y >> FRACTION & (size - 1)
    x1, y1 = (x0 + 1) & (size - 1), (y0 + 1) & (size - 1)
    start = 2 * TEXTURE_SIZE - (2 * TEXTURE_SIZE >> level)
    y0, y1 = (start + y0) * TEXTURE_SIZE, (start + y1) * TEXTURE_SIZE
    w11 = a * b >> FRACTION
    total = texels[y0 + x0] * (UNIT - a - b + w11) + texels[y0 + x1] * (a - w11)
    total += texels[y1 + x0] * (b - w11) + texels[y1 + x1] * w11
    mask = (1 << CHANNEL) - 1
    return np.float32(total & mask), np.float32(total >> CHANNEL & mask), np.float32(total >> 2 * CHANNEL)


@_inline
def _textured(texels, x, y, footprint):
    """Sample in [0, 1] at (x, y) in UNITs, bilinear in two levels; footprint: side of a pixel in texels of the finest."""
    level = 0
    footprint = min(max(footprint, ONE), np.float32(TEXTURE_SIZE >> 1))
    while footprint >= TWO:
        footprint *= HALF
        level += 1
    r, g, b = _texel(texels, x, y, level)
    blend = footprint - ONE
    if blend > ZERO:
        r2, g2, b2 = _texel(texels, x, y, level + 1)
        r, g, b = r + blend * (r2 - r), g + blend * (g2 - g), b + blend * (b2 - b)
    return r * FULL, g * FULL, b * FULL


@_inline
def _azimuth(x, y):
    """atan2(y, x) in radians within 1e-4, by the polynomial 4.4.49 of Abramowitz and Stegun."""
    small, large = min(abs(x), abs(y)), max(abs(x), abs(y), TINY)
    t = small / large
    q = t * t
    angle = np.float32(-0.0851330) + np.float32(0.0208351) * q
    angle = np.float32(-0.3302995) + q * (np.float32(0.1801410) + q * angle)
    angle = t * (np.float32(0.9998660) + q * angle)
    if abs(y) > abs(x):
        angle = np.float32(np.pi / 2) - angle
    if x < ZERO:
        angle = np.float32(np.pi) - angle
    return angle if y >= ZERO else -angle


@_inline
def _background(looks, x, y, z, pixel):
    """Colour of what hangs around the scene in direction (x, y, z) of the base frame; pixel is the angle of a pixel (rad).

    The texture is wrapped around a sphere, by azimuth and by height (Lambert's cylindrical projection): it closes on itself.
    """
    red, green, blue = looks.background_rgb[0], looks.background_rgb[1], looks.background_rgb[2]
    if looks.background_texture >= 0:
        level = np.sqrt(x * x + y * y)
        length = np.sqrt(level * level + z * z)
        sky = np.float32(looks.sky)
        u, v = sky * _azimuth(x, y), -sky * z / length
        footprint = pixel * sky * np.float32(TEXTURE_SIZE) * length / max(level, TINY)
        texels = looks.pyramid[looks.background_texture]
        r, g, b = _textured(texels, int(np.floor(u * UNITS)), int(np.floor(v * UNITS)), footprint)
        red, green, blue = red * r, green * g, blue * b
    return red, green, blue


@_inline
def _sunlight(shadows, column, row, nearness):
    """Share of the light that reaches a point: percentage-closer filtering (Reeves et al. 1987), 2 x 2 bilinear taps."""
    left, top = int(np.floor(column)) - 1, int(np.floor(row)) - 1
    if left < 0 or top < 0 or left + 2 >= shadows.columns or top + 2 >= shadows.rows:
        return ONE
    a, b = column - np.float32(left + 1), row - np.float32(top + 1)
    total = ZERO
    for j in range(3):
        line = shadows.map[top + j]
        first = ONE if nearness >= line[left] else ZERO
        middle = ONE if nearness >= line[left + 1] else ZERO
        last = ONE if nearness >= line[left + 2] else ZERO
        total += (first + middle + a * (last - first)) * ((ONE - b) if j == 0 else (b if j == 2 else ONE))
    return total * QUARTER


@_inline
def _same(geometry, f, g):
    """Whether two samples of a pixel show the same surface: one face, or faces of a mesh that hardly turn."""
    if f == g:
        return True
    if f < 0 or g < 0 or geometry.mesh_of_face[f] != geometry.mesh_of_face[g]:
        return False
    P = geometry.planes
    return P[0, f] * P[0, g] + P[1, f] * P[1, g] + P[2, f] * P[2, g] > SAME_SURFACE


@_inline
def _group(geometry, nearness, face, row, column, pending):
    """The first pending sample of a pixel of 2 x 2, and those that show the same surface.

    Returns what is then still pending, the face, mean nearness and position (in pixels) of the group, and its share of the
    pixel.
    """
    f, n, u, v, weight = -3, ZERO, ZERO, ZERO, ZERO
    for sample in range(4):
        if pending >> sample & 1:
            g = face[row + (sample >> 1), column + (sample & 1)]
            if f == -3:
                f = g
            if _same(geometry, f, g):
                pending -= 1 << sample
                n += nearness[row + (sample >> 1), column + (sample & 1)]
                u += np.float32(sample & 1)
                v += np.float32(sample >> 1)
                weight += ONE
    per = ONE / weight
    return pending, f, n * per, QUARTER + HALF * u * per, QUARTER + HALF * v * per, QUARTER * weight


@_inline
def _dot(a, x, y, z):
    return a[0] * x + a[1] * y + a[2] * z


@_inline
def _surface(geometry, in_cam, looks, f, x, y, z, pixel):
    """Unit normal and colour of the face f at a point of it; pixel is the side of the pixel there (m)."""
    k = geometry.mesh_of_face[f]
    T, S = in_cam[k], geometry.surface[f]
    x, y, z = x - T[0, 3], y - T[1, 3], z - T[2, 3]
    px = T[0, 0] * x + T[1, 0] * y + T[2, 0] * z
    py = T[0, 1] * x + T[1, 1] * y + T[2, 1] * z
    pz = T[0, 2] * x + T[1, 2] * y + T[2, 2] * z
    a, b, c = _dot(S[0:3], px, py, pz) + S[3], _dot(S[4:7], px, py, pz) + S[7], _dot(S[8:11], px, py, pz) + S[11]
    scale = ONE / np.sqrt(max(a * a + b * b + c * c, TINY))
    a, b, c = a * scale, b * scale, c * scale
    nx, ny, nz = _dot(T[0], a, b, c), _dot(T[1], a, b, c), _dot(T[2], a, b, c)
    red, green, blue = looks.rgb[k, 0], looks.rgb[k, 1], looks.rgb[k, 2]
    if looks.texture[k] >= 0:
        u, v = _dot(S[12:15], px, py, pz) + S[15], _dot(S[16:19], px, py, pz) + S[19]
        texels, footprint = looks.pyramid[looks.texture[k]], pixel * S[20] * np.float32(TEXTURE_SIZE)
        r, g, b = _textured(texels, int(np.floor(u * UNITS)), int(np.floor(v * UNITS)), footprint)
        red, green, blue = red * r, green * g, blue * b
    return nx, ny, nz, red, green, blue


@_inline
def _start(form, u, v):
    """A linear form of the ray (u, v, 1)."""
    return form[0] * u + form[1] * v + form[2]


@_kernel
def _table_depth(forms, u, v, step, above, side, towards, specular, depth, gloss):
    """Depth (m) and highlight of the table along a row of pixels, as if all of them showed it.

    These three loops have no branches and few arrays, so that the compiler turns them into vector instructions. forms [7, 4]:
    the ray (u, v, 1) in the base frame (3 rows), in the shadow map (3 rows) and towards the light; u, v: ray of the first
    pixel. Highlight (Blinn 1977): the half vector is that between the light and the way back to the eye.
    """
    down, light, down_step, light_step = _start(forms[2], u, v), _start(forms[6], u, v), forms[2, 0] * step, forms[6, 0] * step
    rest = v * v + ONE
    for i in range(depth.shape[0]):
        c = np.float32(i)
        fall, x = down + down_step * c, u + step * c
        length = ONE / np.sqrt(x * x + rest)
        cosine = (towards - side * fall * length) / np.sqrt(max(TWO - TWO * (light + light_step * c) * length, TINY))
        power_2 = max(cosine, ZERO) * max(cosine, ZERO)
        power_8 = power_2 * power_2 * power_2 * power_2
        depth[i] = above / fall
        gloss[i] = specular * power_8 * power_8 * power_8


@_kernel
def _table_texture(forms, u, v, step, scale, shift_x, shift_y, depth, texture_x, texture_y):
    """Texture coordinates (UNIT) of the table along a row of pixels."""
    x, y, x_step, y_step = _start(forms[0], u, v), _start(forms[1], u, v), forms[0, 0] * step, forms[1, 0] * step
    for i in range(depth.shape[0]):
        c, z = np.float32(i), depth[i]
        texture_x[i] = np.int32(np.floor(((x + x_step * c) * z + shift_x) * scale))
        texture_y[i] = np.int32(np.floor(((y + y_step * c) * z + shift_y) * scale))


@_kernel
def _table_shadow(forms, u, v, step, depth, column, row, nearness):
    """Where along a row of pixels the table is in the shadow map."""
    x, y, z = _start(forms[3], u, v), _start(forms[4], u, v), _start(forms[5], u, v)
    x_step, y_step, z_step = forms[3, 0] * step, forms[4, 0] * step, forms[5, 0] * step
    x_shift, y_shift, z_shift = forms[3, 3], forms[4, 3], forms[5, 3]
    for i in range(depth.shape[0]):
        c, d = np.float32(i), depth[i]
        column[i] = (x + x_step * c) * d + x_shift
        row[i] = (y + y_step * c) * d + y_shift
        nearness[i] = (z + z_step * c) * d + z_shift


@_inline
def _forms(view, lamp, shadows, forms):
    """Fill in the `forms` of _table_depth()."""
    E, A = view.T_base_cam, lamp.axes
    for j in range(4):
        for i in range(3):
            forms[i, j] = E[i, j]
            forms[3 + i, j] = shadows.from_cam[i, j]
        forms[6, j] = A[2, 0] * E[0, j] + A[2, 1] * E[1, j] + A[2, 2] * E[2, j]


@_inline
def _table_colour(table, texels, x, y, footprint):
    """Colour of the table at (x, y) in UNITs."""
    r, g, b = _textured(texels, x, y, footprint)
    return table.rgb[0] * r, table.rgb[1] * g, table.rgb[2] * b


@_kernel
def backdrop(view, table, looks, lamp, shadows, line, places, forms, out):
    """The unlit colours of the table and of the background at every pixel, as if it showed them: out float32 [2, H, W, 3].

    They stay what they are while the camera stays, so that shade() need not sample their textures again. The rest: shade().
    """
    _forms(view, lamp, shadows, forms)
    E, up = view.T_base_cam, forms[2]
    step, centre_x, centre_y = np.float32(1 / view.focal), np.float32(view.centre_x), np.float32(view.centre_y)
    above, repeats = np.float32(table.height - E[2, 3]), np.float32(table.repeats)
    shift_x, shift_y, footprint = np.float32(E[0, 3] - table.x), np.float32(E[1, 3]), step * repeats * np.float32(TEXTURE_SIZE)
    texels = looks.pyramid[max(table.texture, 0)]
    for row in range(out.shape[1]):
        u, v = (HALF - centre_x) * step, (np.float32(row) + HALF - centre_y) * step
        _table_depth(forms, u, v, step, above, ONE, ONE, ZERO, line[0], line[1])
        _table_texture(forms, u, v, step, repeats * UNITS, shift_x, shift_y, line[0], places[0], places[1])
        for column in range(out.shape[2]):
            colour = table.rgb[0], table.rgb[1], table.rgb[2]
            if table.texture >= 0:
                colour = _table_colour(table, texels, places[0, column], places[1, column], line[0, column] * footprint)
            x = (np.float32(column) + HALF - centre_x) * step
            sky = _background(looks, _start(forms[0], x, v), _start(forms[1], x, v), _start(up, x, v), step)
            for c in range(3):
                out[0, row, column, c], out[1, row, column, c] = colour[c], sky[c]


@_kernel
def shade(geometry, in_cam, view, table, looks, lamp, shadows, nearness, face, still, line, places, forms, rgb):
    """Colour of every pixel into rgb, uint8 [H, W, 3]; line float32 [5, W], places int32 [2, W], forms [7, 4] are scratch.

    still: what backdrop() made for this camera, or [2, 0, 0, 3].

    nearness and face may be twice as large: then a pixel is the mean of 2 x 2 samples, and a surface that several of them show
    is shaded once, at their middle (multisampling); the table and the background always at the middle of the pixel.

    Ambient light is a little stronger opposite the lamp, mirrored at the vertical, so that unlit faces keep their shape. The
    shadow of a mesh is looked up a little off its surface: a texel along the normal, more where light grazes it.
    """
    height, width = rgb.shape[:2]
    fine = face.shape[0] // height
    _forms(view, lamp, shadows, forms)
    E, M, L, up = view.T_base_cam, shadows.from_cam, forms[6], forms[2]
    step, centre_x, centre_y = np.float32(1 / view.focal), np.float32(view.centre_x), np.float32(view.centre_y)
    ambient, diffuse, specular = np.float32(lamp.ambient), np.float32(lamp.diffuse), np.float32(lamp.specular)
    rise, darkness, texel = np.float32(lamp.axes[2, 2]), np.float32(lamp.shadow), np.float32(shadows.texel)
    above, side = np.float32(table.height - E[2, 3]), ONE if E[2, 3] > table.height else -ONE  # the side that shows
    repeats, shift_x, shift_y = np.float32(table.repeats), np.float32(E[0, 3] - table.x), np.float32(E[1, 3])
    table_towards, table_footprint = side * rise, step * repeats * np.float32(TEXTURE_SIZE)
    table_ambient = ambient * (np.float32(0.75) + np.float32(0.35) * (TWO * side * rise - table_towards))
    is_still = still.shape[1] > 0
    table_texels, has_texture = looks.pyramid[max(table.texture, 0)], table.texture >= 0 and not is_still
    depth, gloss, shadow_x, shadow_y, shadow_z = line[0], line[1], line[2], line[3], line[4]
    for row in range(height):
        u, v = (HALF - centre_x) * step, (np.float32(row) + HALF - centre_y) * step
        _table_depth(forms, u, v, step, above, side, table_towards, specular, depth, gloss)
        if has_texture:
            _table_texture(forms, u, v, step, repeats * UNITS, shift_x, shift_y, depth, places[0], places[1])
        if texel > ZERO:
            _table_shadow(forms, u, v, step, depth, shadow_x, shadow_y, shadow_z)
        for column in range(width):
            red, green, blue = ZERO, ZERO, ZERO
            pending = 1 if fine == 1 else 15  # bit i: sample i has no colour yet
            while pending:
                if fine == 1:
                    pending, f, n, u, v, weight = 0, face[row, column], nearness[row, column], HALF, HALF, ONE
                else:
                    pending, f, n, u, v, weight = _group(geometry, nearness, face, 2 * row, 2 * column, pending)
                sunlight = ONE
                if f == TABLE_FACE:
                    r, g, b = table.rgb[0], table.rgb[1], table.rgb[2]
                    if is_still:
                        r, g, b = still[0, row, column, 0], still[0, row, column, 1], still[0, row, column, 2]
                    elif has_texture:
                        footprint = depth[column] * table_footprint
                        r, g, b = _table_colour(table, table_texels, places[0, column], places[1, column], footprint)
                    brightness, highlight = table_ambient, ZERO
                    if table_towards > ZERO:
                        if texel > ZERO:  # the table casts no shadow itself, so there is no offset
                            lit = _sunlight(shadows, shadow_x[column], shadow_y[column], shadow_z[column])
                            sunlight -= darkness * (ONE - lit)
                        brightness += diffuse * table_towards * sunlight
                        highlight = gloss[column]
                elif f == NO_FACE:
                    if is_still:
                        r, g, b = still[1, row, column, 0], still[1, row, column, 1], still[1, row, column, 2]
                    else:
                        u, v = (np.float32(column) + HALF - centre_x) * step, (np.float32(row) + HALF - centre_y) * step
                        r, g, b = _background(looks, _start(forms[0], u, v), _start(forms[1], u, v), _start(up, u, v), step)
                    red, green, blue = red + weight * r, green + weight * g, blue + weight * b
                    continue
                else:
                    u, v = (np.float32(column) + u - centre_x) * step, (np.float32(row) + v - centre_y) * step
                    z = ONE / n
                    x, y = u * z, v * z
                    nx, ny, nz, r, g, b = _surface(geometry, in_cam, looks, f, x, y, z, z * step)
                    towards = _dot(L, nx, ny, nz)
                    brightness = ambient * (np.float32(0.75) + np.float32(0.35) * (TWO * _dot(up, nx, ny, nz) * rise - towards))
                    highlight = ZERO
                    if towards > ZERO:
                        if texel > ZERO:
                            push = texel * (HALF + TWO * np.sqrt(max(ONE - towards * towards, ZERO)))
                            x, y, z = x + push * nx, y + push * ny, z + push * nz
                            at, down, near = _dot(M[0], x, y, z), _dot(M[1], x, y, z), _dot(M[2], x, y, z)
                            lit = _sunlight(shadows, at + M[0, 3], down + M[1, 3], near + M[2, 3])
                            sunlight -= darkness * (ONE - lit)
                        brightness += diffuse * towards * sunlight
                        length = ONE / np.sqrt(u * u + v * v + ONE)
                        away, ahead = (nx * u + ny * v + nz) * length, _start(L, u, v) * length
                        cosine = (towards - away) / np.sqrt(max(TWO - TWO * ahead, TINY))
                        if cosine > DULL:
                            power_8 = cosine**8
                            highlight = specular * power_8 * power_8 * power_8
                highlight *= sunlight
                red += weight * (r * brightness + highlight) * lamp.rgb[0]
                green += weight * (g * brightness + highlight) * lamp.rgb[1]
                blue += weight * (b * brightness + highlight) * lamp.rgb[2]
            rgb[row, column, 0] = np.uint8(min(max(LARGEST * red + HALF, ZERO), LARGEST))
            rgb[row, column, 1] = np.uint8(min(max(LARGEST * green + HALF, ZERO), LARGEST))
            rgb[row, column, 2] = np.uint8(min(max(LARGEST * blue + HALF, ZERO), LARGEST))
