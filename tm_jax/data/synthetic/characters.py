"""An endless, seeded set of talking cartoon characters with exact labels, rendered in JAX.

A `Character` is a pytree of small float32 arrays that `sample(seed)` draws; `render` turns a
batch of them and their motion curves into video. All of it is vector graphics, so `size` is
free. Coordinates, gaze, yaw, pitch and head shifts follow the picture: positive is to the
right and down. `brow` is positive when raised, `smile` when the corners go up.

Held-out rule: a seed whose last decimal digit is 9 belongs to the held-out set and must never
be trained on. `training_seed` and `held_out_seed` number the two sides.
"""

from collections.abc import Sequence
import colorsys
import dataclasses
import functools
import types
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from tm_jax.data import features
from tm_jax.data.synthetic import drawing
from tm_jax.data.synthetic import portrait

STYLES = drawing.STYLES

HAIR: tuple[str, ...] = (
    "bald", "short", "bob", "long", "bun", "curly", "cap", "beanie", "quiff",
)  # fmt: skip

MOTION: tuple[str, ...] = (
    "mouth_open", "mouth_width", "mouth_round", "teeth", "tongue", "smile",
    "blink_left", "blink_right", "gaze_x", "gaze_y", "brow",
    "yaw", "pitch", "roll", "head_x", "head_y", "breath",
)  # fmt: skip

_SKINS = (
    (0.99, 0.86, 0.77), (0.97, 0.80, 0.68), (0.93, 0.73, 0.58), (0.87, 0.65, 0.48),
    (0.78, 0.55, 0.39), (0.67, 0.45, 0.32), (0.56, 0.37, 0.27), (0.48, 0.32, 0.25),
)  # fmt: skip
_FANTASY = ((0.66, 0.82, 0.62), (0.62, 0.76, 0.93), (0.80, 0.70, 0.92), (0.96, 0.72, 0.76))
_HAIRS = (
    (0.20, 0.16, 0.17), (0.30, 0.20, 0.16), (0.44, 0.28, 0.18), (0.60, 0.40, 0.22),
    (0.88, 0.70, 0.38), (0.96, 0.84, 0.58), (0.74, 0.34, 0.18), (0.70, 0.69, 0.70),
    (0.26, 0.22, 0.30),
)  # fmt: skip
_DYED = ((0.86, 0.40, 0.58), (0.30, 0.52, 0.78), (0.46, 0.34, 0.66), (0.24, 0.58, 0.54))
_IRISES = (
    (0.40, 0.25, 0.14), (0.55, 0.36, 0.18), (0.30, 0.52, 0.74), (0.34, 0.55, 0.38),
    (0.46, 0.52, 0.56), (0.62, 0.46, 0.16),
)  # fmt: skip


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "kinds", "centre", "face", "skin", "hair", "hair_shape", "hat", "eyes", "iris",
        "lash", "brow", "brows", "nose", "ear", "mouth", "lips", "blush", "glasses", "frames",
        "beard_colour", "body", "cloth", "trim", "backdrop", "back_a", "back_b",
    ],
    meta_fields=[],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class Character:
    """One character, or a batch of them with a leading axis; every leaf is float32.

    Lengths are in units of the picture or, where said, of the face's half width or height.

    Attributes:
      kinds: [8] style, hair, seed's low bits, backdrop, neckline, pattern, beard, moustache.
      centre: [2] face centre x, y in the portrait pose.
      face: [4] half width, half height, squareness, narrowing of the jaw.
      skin: [3] colour, like all the colours in RGB 0..1.
      hair: [3] colour.
      hair_shape: [3] volume, height of the hair line, parting.
      hat: [3] colour of cap or beanie.
      eyes: [6] spacing, height in the face, half width, half height, iris, lid line.
      iris: [3] colour.
      lash: [3] colour.
      brow: [4] distance above the eye, thickness, tilt, half length.
      brows: [3] colour.
      nose: [3] kind, size, height in the face.
      ear: [2] size, height in the face.
      mouth: [5] height in the face, half width, opening per face height, upper and lower lip.
      lips: [3] colour.
      blush: [2] strength of the cheeks, strength of the outer lashes.
      glasses: [3] radius, height per width, worn or not.
      frames: [3] colour.
      beard_colour: [3] colour of beard and moustache.
      body: [2] half width of the shoulders, height of the shoulders' top.
      cloth: [3] colour.
      trim: [3] colour of collar and pattern.
      backdrop: [3] free parameters of the backdrop.
      back_a: [3] first colour of the backdrop.
      back_b: [3] second colour of the backdrop.
    """

    kinds: jax.Array
    centre: jax.Array
    face: jax.Array
    skin: jax.Array
    hair: jax.Array
    hair_shape: jax.Array
    hat: jax.Array
    eyes: jax.Array
    iris: jax.Array
    lash: jax.Array
    brow: jax.Array
    brows: jax.Array
    nose: jax.Array
    ear: jax.Array
    mouth: jax.Array
    lips: jax.Array
    blush: jax.Array
    glasses: jax.Array
    frames: jax.Array
    beard_colour: jax.Array
    body: jax.Array
    cloth: jax.Array
    trim: jax.Array
    backdrop: jax.Array
    back_a: jax.Array
    back_b: jax.Array


def is_held_out(seed: int) -> bool:
    """Whether a character must never be trained on: its seed ends in 9."""
    return seed % 10 == 9


def training_seed(index: int) -> int:
    """The seed of training character 0, 1, 2, ..."""
    return index // 9 * 10 + index % 9


def held_out_seed(index: int) -> int:
    """The seed of held-out character 0, 1, 2, ..."""
    return index * 10 + 9


def neutral() -> np.ndarray:
    """The portrait pose, float32 [M]: mouth shut, eyes open, looking ahead."""
    motion = np.zeros(len(MOTION), np.float32)
    motion[MOTION.index("smile")] = 0.45
    return motion


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _luminance(colour) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def _colours(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Colours that go together: one accent hue, its neighbours, and a calm backdrop."""
    fantasy = rng.random() < 0.08
    if fantasy:
        skin = np.array(_FANTASY[rng.integers(len(_FANTASY))])
    else:
        at = rng.uniform(0, len(_SKINS) - 1.001)
        low = int(at)
        skin = np.array(_SKINS[low]) * (low + 1 - at) + np.array(_SKINS[low + 1]) * (at - low)
    skin = np.clip(skin * rng.uniform(0.97, 1.03, 3), 0, 1)
    dyed = rng.random() < (0.5 if fantasy else 0.10)
    palette = _DYED if dyed else _HAIRS
    hair = np.array(palette[rng.integers(len(palette))]) * rng.uniform(0.92, 1.08)
    if abs(_luminance(hair) - _luminance(skin)) < 0.10:
        hair = hair * (0.62 if _luminance(skin) > 0.45 else 1.0) + (
            0.0 if _luminance(skin) > 0.45 else -0.10
        )
    hair = np.clip(hair, 0.10, 0.97)
    accent = rng.random()
    cloth = _hsv(accent, rng.uniform(0.35, 0.72), rng.uniform(0.50, 0.90))
    trim = _hsv(accent + rng.choice([0.08, 0.45, 0.5, -0.08]), rng.uniform(0.1, 0.5), 0.93)
    if rng.random() < 0.4:
        trim = np.array([0.96, 0.95, 0.92])
    back = accent + rng.choice([0.33, 0.42, 0.5, 0.58])
    light = rng.uniform(0.78, 0.95)
    red = np.array([0.80, 0.36, 0.36]) if rng.random() < 0.6 else np.array([0.84, 0.38, 0.48])
    share = rng.uniform(0.50, 0.85)
    lips = skin * (1 - share) * np.array([0.95, 0.80, 0.80]) + red * share
    beard = np.clip(hair * 0.92, 0.22, 0.9)
    if _luminance(beard) < 0.27:
        beard = beard + (0.27 - _luminance(beard))
    dark = np.clip(hair * 0.8, 0.10, 0.62)
    if _luminance(dark) > 0.75 * _luminance(skin):
        dark = dark * 0.6
    return dict(
        skin=skin,
        hair=hair,
        hat=_hsv(accent + 0.5 * rng.integers(2), rng.uniform(0.45, 0.75), rng.uniform(0.5, 0.9)),
        iris=np.array(_IRISES[rng.integers(len(_IRISES))]),
        lash=np.array([0.17, 0.12, 0.12]),
        brows=dark,
        lips=lips,
        frames=_hsv(rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.15, 0.5)),
        beard_colour=beard,
        cloth=cloth,
        trim=trim,
        back_a=_hsv(back, rng.uniform(0.14, 0.42), light),
        back_b=_hsv(back + rng.uniform(-0.08, 0.08), rng.uniform(0.22, 0.5), light * 0.88),
    )


def sample(seed: int, style: str | None = None) -> Character:
    """Draws a character.

    Args:
      seed: Any non-negative integer; the same seed gives the same character.
      style: One of `STYLES`, or None to let the seed choose.

    Returns:
      The character, without batch axis.
    """
    if style is not None and style not in STYLES:
        raise ValueError(f"style {style!r} is unknown; choose one of {', '.join(STYLES)}.")
    rng = np.random.default_rng([int(seed), 20506])
    chosen = int(rng.integers(len(STYLES)))
    chosen = chosen if style is None else STYLES.index(style)
    uniform = rng.uniform
    height = uniform(0.245, 0.275)
    width = height * uniform(0.80, 0.93)
    feminine = rng.random() < 0.5
    weights = (
        [0.01, 0.05, 0.24, 0.26, 0.19, 0.14, 0.04, 0.05, 0.02]
        if feminine
        else [0.12, 0.26, 0.02, 0.04, 0.02, 0.13, 0.12, 0.11, 0.18]
    )
    hair = int(rng.choice(len(HAIR), p=weights))
    beard = (not feminine) and rng.random() < 0.26
    moustache = (not feminine) and rng.random() < (0.65 if beard else 0.14)
    eye = uniform(0.185, 0.235)
    centre_y = 0.475 + uniform(-0.015, 0.02)
    values = dict(
        kinds=[chosen, hair, seed % 1024, rng.integers(6), rng.integers(4), rng.integers(4),
               beard, moustache],
        centre=[0.5 + uniform(-0.025, 0.025), centre_y],
        face=[width, height, uniform(0.0, 0.55), uniform(0.0, 0.10 if feminine else 0.06)],
        hair_shape=[uniform(0.016, 0.034), uniform(0.48, 0.62), uniform(-0.5, 0.5)],
        eyes=[uniform(0.40, 0.47), uniform(-0.12, 0.0), eye, eye * uniform(0.84, 1.12) * 0.86,
              uniform(0.66, 0.78), uniform(0.0024, 0.0036)],
        brow=[uniform(0.30, 0.37), uniform(0.0042, 0.0062) if feminine else uniform(0.006, 0.010),
              uniform(-0.03, 0.03), uniform(0.20, 0.26)],
        nose=[rng.integers(4), uniform(0.12, 0.19), uniform(0.21, 0.27)],
        ear=[uniform(0.036, 0.048), uniform(0.02, 0.10)],
        mouth=[uniform(0.53, 0.57), uniform(0.067, 0.082), uniform(0.165, 0.19),
               uniform(0.010, 0.015), uniform(0.013, 0.019)],
        blush=[uniform(0.1, 0.5), float(feminine)],
        glasses=[uniform(0.30, 0.36), uniform(0.80, 1.0), rng.random() < 0.24],
        body=[uniform(0.33, 0.40) + (0.0 if feminine else 0.03), centre_y + height + 0.075],
        backdrop=[uniform(0.0, 1.0), uniform(0.42, 0.55), uniform(0.0, 1.0)],
        **_colours(rng),
    )  # fmt: skip
    # Host arrays; they become the device's under `jit`.
    arrays: dict[str, Any] = {k: np.asarray(v, np.float32) for k, v in values.items()}
    return Character(**arrays)


def stack(characters: Sequence[Character]) -> Character:
    """Puts characters into a batch: every leaf gains a leading axis B."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *characters)


def columns(motion: jax.Array) -> types.SimpleNamespace:
    """Names the columns of a motion array [..., M]; each attribute has shape [...]."""
    return types.SimpleNamespace(**{name: motion[..., i] for i, name in enumerate(MOTION)})


def _check(character: Character, motion) -> None:
    if motion.ndim != 3 or motion.shape[-1] != len(MOTION):
        raise ValueError(f"motion must be [B, T, {len(MOTION)}], got {tuple(motion.shape)}.")
    if character.kinds.ndim != 2 or character.kinds.shape[0] != motion.shape[0]:
        raise ValueError(
            f"character must be a batch of {motion.shape[0]} (see stack); "
            f"kinds has the shape {tuple(character.kinds.shape)}."
        )


def draw(seed: int, style: str | None = None, size: int = 256) -> np.ndarray:
    """Draws the portrait of a character, uint8 [size, size, 3]; see `sample`."""
    motion = neutral()[None, None]
    return np.asarray(render(stack([sample(seed, style)]), motion, size))[0, 0]


@functools.partial(jax.jit, static_argnames="size")
def render(character: Character, motion: jax.Array, size: int = 256) -> jax.Array:
    """Renders clips.

    Frames are drawn one after the other: each takes only the branches of its own style and
    hair, which on CPUs beats drawing all branches for a whole batch.

    Args:
      character: A batch of characters, leaves [B, ...]; styles may be mixed.
      motion: Motion curves, [B, T, M].
      size: Side of the picture in pixels; static.

    Returns:
      Video, uint8 [B, T, size, size, 3].
    """
    _check(character, motion)

    def clip(item):
        one, curve = item
        back = portrait.background(one, size)
        return lax.map(lambda m: portrait.frame(one, columns(m), back, size), curve)

    return lax.map(clip, (character, motion))


@jax.jit
def regions(character: Character, motion: jax.Array) -> dict[str, jax.Array]:
    """Boxes (y0, x0, y1, x1) in 0..1 of the picture, in each frame's pose.

    Args:
      character: A batch of characters, leaves [B, ...].
      motion: Motion curves, [B, T, M].

    Returns:
      `mouth` [B, T, 4], which holds the mouth at any opening, `eyes` [B, T, 4], which holds
      them and the brows wherever these go, and `face` [B, T, 4].
    """
    _check(character, motion)

    def one(c, m):
        m = columns(m)
        at = portrait.pose(c, m)
        fw, fh = c.face[0], c.face[1]

        def around(u0, v0, u1, v1):
            u, v = jnp.stack([u0, u1, u0, u1]), jnp.stack([v0, v0, v1, v1])
            x, y = at.picture(u, v)
            return jnp.clip(jnp.stack([y.min(), x.min(), y.max(), x.max()]), 0.0, 1.0)

        half = features.mouth_half_width(c, 1.0, 0.0) + 0.014
        tall = features.mouth_height(c, 1.0)
        middle = c.mouth[0] * fh + at.pitch
        bow = 0.045 * fh  # the corners' rise and fall with a smile
        low = 0.70 * tall + 1.5 * c.mouth[4] + bow + 0.004
        high = 0.30 * tall + 1.5 * c.mouth[3] + bow + 0.004
        mouth = around(at.yaw - half, middle - high, at.yaw + half, middle + low)
        face = around(-fw * 1.03, -fh * 1.03, fw * 1.03, fh * 1.03)
        wide = (c.eyes[0] + jnp.maximum(c.eyes[2], c.brow[3])) * fw + 0.01
        top = (c.eyes[1] - c.brow[0] - 0.15) * fh + at.pitch
        bottom = c.eyes[1] * fh + c.eyes[3] * fw + 0.01 + at.pitch
        eyes = around(at.yaw - wide, top, at.yaw + wide, bottom)
        return dict(mouth=mouth, eyes=eyes, face=face)

    return jax.vmap(lambda c, ms: jax.vmap(lambda m: one(c, m))(ms))(character, motion)
