"""Paints the face's colour map and the backdrop of a person."""

import numpy as np
from scipy import ndimage

from tm_jax.data.synthetic.people import identity as identity_lib
from tm_jax.data.synthetic.people import regions

# The face's map looks at the template from the front: lowest x and y, then one over its sides.
FACE_BOX = (-0.95, 5.9, 1 / 1.9, 1 / 2.75)
FACE_SIZE = (704, 512)  # Height, width in texels.


def linear(colour: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 to linear light."""
    colour = np.asarray(colour, np.float64)
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def _smooth_noise(rng, shape, sigma) -> np.ndarray:
    """Noise of standard deviation one, blurred by `sigma` texels."""
    values = rng.standard_normal(shape).astype(np.float32)
    values = ndimage.gaussian_filter(values, sigma, mode="wrap")
    return values / values.std()


def _bump(x, y, centre, size) -> np.ndarray:
    return np.exp(-(((np.abs(x) - centre[0]) / size[0]) ** 2) - ((y - centre[1]) / size[1]) ** 2)


def face(identity: identity_lib.Identity) -> np.ndarray:
    """The colour map over the skin's base colour, uint8 [H, W, 3]; 128 leaves it as it is."""
    rng = np.random.default_rng([identity.seed, 161803])
    height, width = FACE_SIZE
    x = FACE_BOX[0] + (np.arange(width) + 0.5) / width / FACE_BOX[2]
    y = FACE_BOX[1] + (np.arange(height) + 0.5) / height / FACE_BOX[3]
    x, y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    tone = np.ones((height, width, 3), np.float32)
    light = 1 - identity.melanin

    def multiply(mask, colour):
        nonlocal tone
        tone = tone * (1 + mask[..., None] * (np.asarray(colour, np.float32) - 1))

    mottle = 0.5 * _smooth_noise(rng, x.shape, 18) + 0.35 * _smooth_noise(rng, x.shape, 5)
    multiply(np.clip(0.5 + 0.35 * mottle, 0, 1) * 0.5, (0.97, 0.90, 0.89))
    multiply(_smooth_noise(rng, x.shape, 1.0) * 0.018, (0.0, 0.0, 0.0))
    blush = 0.30 + 0.5 * identity.makeup + 0.35 * light
    multiply(_bump(x, y, (0.46, 6.93), (0.23, 0.20)) * 0.6 * blush, (0.99, 0.74, 0.72))
    multiply(_bump(x, y, (0.0, 6.98), (0.13, 0.16)) * 0.5, (0.99, 0.80, 0.77))
    multiply(_bump(x, y, (0.0, 6.25), (0.22, 0.12)) * 0.3, (0.99, 0.84, 0.82))
    multiply(_bump(x, y, (0.0, 7.85), (0.6, 0.3)) * 0.4, (1.0, 1.0, 0.93))
    tired = 0.45 + 0.5 * identity.age
    multiply(_bump(x, y, (0.28, 7.14), (0.17, 0.055)) * tired, (0.84, 0.76, 0.80))
    multiply(_bump(x, y, (0.165, 7.27), (0.06, 0.10)) * 0.6, (0.84, 0.70, 0.70))
    multiply(_bump(x, y, (0.32, 7.385), (0.19, 0.055)) * (0.35 + 0.55 * identity.makeup),
             (0.82, 0.68, 0.66))  # fmt: skip
    if identity.makeup:
        multiply(_bump(x, y, (0.34, 7.375), (0.20, 0.04)) * identity.makeup * 0.7, (0.6, 0.5, 0.52))
    # The edge of the lids, where lashes root.
    if identity.freckles:
        spots = _smooth_noise(rng, x.shape, 2.2) > 2.0 - 0.25 * identity.freckles
        spots = ndimage.gaussian_filter(spots.astype(np.float32), 0.9)
        where = _bump(x, y, (0.3, 7.0), (0.42, 0.25)) + 0.6 * _bump(x, y, (0, 7.05), (0.2, 0.3))
        multiply(np.clip(spots * where * 1.3, 0, 1) * identity.freckles, (0.72, 0.55, 0.45))
    for _ in range(rng.integers(0, 4)):  # Moles.
        mx, my = rng.uniform(-0.6, 0.6), rng.uniform(6.4, 7.9)
        spot = np.exp(-((x - mx) ** 2 + (y - my) ** 2) / rng.uniform(0.009, 0.014) ** 2)
        multiply(spot, (0.5, 0.38, 0.33))
    _wrinkles(identity, x, y, multiply)
    tone = _brows(identity, rng, x, y, tone)
    return np.clip(np.round(tone * 127.5), 0, 255).astype(np.uint8)


def _wrinkles(identity, x, y, multiply) -> None:
    """Lines of the forehead, from the nose to the mouth, and at the eyes' corners."""
    strength = np.clip(identity.age * 1.1 - 0.08, 0, 0.8)
    if strength <= 0:
        return
    for level in (7.78, 7.90, 8.01):
        line = y - level + 0.10 * x**2 + 0.012 * np.sin(9 * x + level * 40)
        multiply(np.exp(-((line / 0.011) ** 2)) * np.exp(-((x / 0.4) ** 4)) * strength * 0.35,
                 (0.72, 0.60, 0.58))  # fmt: skip
    fold = np.abs(x) - (0.20 + 0.42 * (7.02 - y) * (1 - 0.4 * (7.02 - y)))
    inside = (y < 7.0) * (y > 6.58)
    multiply(np.exp(-((fold / 0.014) ** 2)) * inside * (0.15 + 0.35 * strength), (0.74, 0.6, 0.58))
    for angle in (-0.35, 0.0, 0.35):
        u, v = np.abs(x) - 0.52, y - 7.27
        off = v * np.cos(angle) - u * np.sin(angle)
        along = u * np.cos(angle) + v * np.sin(angle)
        ray = np.exp(-((off / 0.009) ** 2)) * (along > 0) * np.exp(-((along / 0.12) ** 2))
        multiply(ray * strength * 0.4, (0.72, 0.6, 0.58))


def _brows(identity, rng, x, y, tone) -> np.ndarray:
    """Brows stroke by stroke: hairs rise at the inner end and lie down toward the outer."""
    distance, along, side = regions.brow(x, y)
    half = np.interp(along, [0, 0.12, 0.55, 1.0], [0.045, 0.058, 0.044, 0.012])
    half = half * identity.brow_weight * 0.85
    body = np.clip(1.5 - 1.1 * distance / half, 0, 1) * (along > 0.001) * (along < 0.999)
    body = body * np.interp(along, [0, 0.2, 0.8, 1], [0.25, 1, 1, 0.45])
    flow = along * 60 - side * distance * np.interp(along, [0, 0.5, 1], [110, 330, 420]) * 0.35
    flow = flow * 1.6
    index = np.floor(flow).astype(int)
    table = rng.random(4096).astype(np.float32)
    fraction = flow - index
    stroke = table[index % 4096] * (1 - fraction) + table[(index + 1) % 4096] * fraction
    density = body * np.clip(0.72 + 0.7 * (stroke - 0.4), 0, 1)
    density = ndimage.gaussian_filter(density, 0.8)
    grey = 0.5 * identity.age > 0.35
    colour = linear(identity.hair_colour * (0.8 if not grey else 1.0))
    if identity.hair_colour.mean() > 0.45:
        colour = colour * 0.45
    ratio = np.clip(colour / linear(identity.skin), 0.0, 1.6)
    cover = np.clip(density * 1.1, 0, 0.86)[..., None]
    return tone * (1 - cover) + ratio * cover


def backdrop(identity: identity_lib.Identity, size: int) -> np.ndarray:
    """What stands behind the person, out of focus, uint8 sRGB [size, size, 3], bottom row first."""
    rng = np.random.default_rng([identity.seed, 57721])
    side = 192
    y, x = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    a, b = (linear(c) for c in identity.backdrop_colour)
    picture = _BACKDROPS[identity.backdrop](rng, x, y, a, b)
    picture = picture * (1 - 0.10 * (x**2 + y**2))[..., None]
    picture = np.clip(picture, 0, 1.2) * 0.8
    picture = picture * (2.51 * picture + 0.03) / (picture * (2.43 * picture + 0.59) + 0.14)
    picture = np.clip(picture, 0, 1) ** (1 / 2.2)
    zoom = size / side
    picture = ndimage.zoom(picture, (zoom, zoom, 1), order=1)[:size, :size]
    picture = picture + rng.uniform(-0.5, 0.5, picture.shape) / 255
    return np.clip(np.round(picture * 255), 0, 255).astype(np.uint8)


def _studio(rng, x, y, a, b):
    spot = np.exp(-((x - rng.uniform(-0.5, 0.5)) ** 2 + (y + 0.1) ** 2) / 0.9)[..., None]
    cloud = _smooth_noise(rng, x.shape, 26)[..., None] * 0.06
    return a * 0.62 * (0.35 + 0.75 * spot + cloud)


def _gradient(rng, x, y, a, b):
    t = np.clip(0.5 + 0.45 * (y * np.cos(0.6) + x * rng.uniform(-0.6, 0.6)), 0, 1)[..., None]
    return b * 0.9 * (1 - t) + a * 0.9 * t


def _blocks(rng, x, y, a, b, count, blur):
    picture = np.broadcast_to(0.5 * (a + b), x.shape + (3,)).copy()
    for _ in range(count):
        cx, cy = rng.uniform(-1.1, 1.1, 2)
        w, h = rng.uniform(0.08, 0.5), rng.uniform(0.1, 0.8)
        mask = (np.abs(x - cx) < w) & (np.abs(y - cy) < h)
        mix = rng.random()
        picture[mask] = (mix * a + (1 - mix) * b) * rng.uniform(0.3, 1.5)
    return ndimage.gaussian_filter(picture, (blur, blur, 0))


def _room(rng, x, y, a, b):
    wall = _blocks(rng, x, y, a, b, 9, 7)
    lamp = np.exp(-((x - rng.choice([-0.75, 0.75])) ** 2 + (y - 0.45) ** 2) / 0.05)[..., None]
    return wall * 0.7 + lamp * np.array([1.0, 0.72, 0.42]) * 0.8


def _window(rng, x, y, a, b):
    edge = rng.choice([-1, 1]) * (x + rng.uniform(-0.1, 0.3))
    bright = 1 / (1 + np.exp(-(edge - 0.1) * 14))
    bars = 1 - 0.55 * np.exp(-(((edge - 0.55) / 0.05) ** 2))
    sky = np.array([0.82, 0.92, 1.05]) * (bright * bars)[..., None]
    return ndimage.gaussian_filter(sky + _blocks(rng, x, y, a, b, 4, 9) * 0.4, (5, 5, 0))


def _garden(rng, x, y, a, b):
    leaf = np.clip(0.5 + 0.20 * _smooth_noise(rng, x.shape, 14), 0.1, 1)[..., None]
    hue = np.clip(0.5 + 0.2 * _smooth_noise(rng, x.shape, 26), 0, 1)[..., None]
    green = hue * np.array([0.20, 0.26, 0.09]) + (1 - hue) * np.array([0.07, 0.15, 0.08])
    picture = green * leaf * (0.8 + 0.5 * np.clip(y, 0, 1)[..., None])
    return _bokeh(rng, x, y, picture, np.array([0.42, 0.46, 0.22]), 18)


def _lights(rng, x, y, a, b):
    dark = np.broadcast_to(0.16 * (a + b), x.shape + (3,)) * (0.7 - 0.3 * y[..., None])
    return _bokeh(rng, x, y, dark, np.array([1.0, 0.72, 0.42]), 26)


def _bokeh(rng, x, y, picture, colour, count):
    """Discs of lights out of focus."""
    picture = picture.copy()
    for _ in range(count):
        r = rng.uniform(0.05, 0.15)
        distance = np.hypot(x - rng.uniform(-1.1, 1.1), y - rng.uniform(-0.8, 1.1)) / r
        disc = np.clip((1 - distance) * 8, 0, 1) * (0.75 + 0.25 * np.clip(distance, 0, 1) ** 4)
        tint = colour * rng.uniform(0.6, 1.4, 3)
        picture += disc[..., None] * tint * rng.uniform(0.05, 0.35)
    return ndimage.gaussian_filter(picture, (1.5, 1.5, 0))


_BACKDROPS = {
    "studio": _studio, "gradient": _gradient, "room": _room, "window": _window,
    "garden": _garden, "lights": _lights,
}  # fmt: skip


def strands() -> np.ndarray:
    """A texture of strands and threads, uint8 [256, 256, 4], the same for everybody.

    Red: brightness along strands; green: gaps between them; blue: sparkle; alpha: weave.
    """
    rng = np.random.default_rng(8314)
    side = 256
    streaks = ndimage.gaussian_filter(rng.standard_normal((side, side)), (26, 1.1), mode="wrap")
    gaps = ndimage.gaussian_filter(rng.standard_normal((side, side)), (40, 1.6), mode="wrap")
    sparkle = ndimage.gaussian_filter(rng.standard_normal((side, side)), (6, 1.0), mode="wrap")
    weave = ndimage.gaussian_filter(rng.standard_normal((side, side)), 0.9, mode="wrap")
    y, x = np.mgrid[:side, :side] * (2 * np.pi / side)
    weave = weave / weave.std() + 0.8 * np.sin(64 * x) * np.sin(64 * y)
    layers = [0.5 + 0.22 * v / v.std() for v in (streaks, gaps, sparkle, weave)]
    return np.clip(np.stack(layers, -1) * 255, 0, 255).astype(np.uint8)
