"""Who a drawn person is: everything that a seed decides, as plain numbers.

Held-out rule: that of the drawn characters (`characters.is_held_out`): a seed whose last
decimal digit is 9 belongs to the held-out set and must never be trained on.
"""

import colorsys
import dataclasses
from typing import Any

import numpy as np

from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic.people import basis as basis_lib

HAIR: tuple[str, ...] = (
    "bald", "buzz", "crop", "quiff", "bob", "long", "bun", "curls", "hijab", "cap", "beanie",
)  # fmt: skip
BEARD: tuple[str, ...] = ("none", "stubble", "moustache", "goatee", "full")
CLOTHES: tuple[str, ...] = ("crew", "vneck", "shirt", "turtleneck", "hoodie", "blazer")
BACKDROP: tuple[str, ...] = ("studio", "gradient", "room", "window", "garden", "lights")

is_held_out = characters.is_held_out
training_seed = characters.training_seed
held_out_seed = characters.held_out_seed

SHAPE_STD = 0.2  # Larger ones, 0.5 say, make caricatures.

_SKIN = np.array(
    [(240, 203, 184), (229, 184, 158), (208, 157, 124), (168, 116, 86), (116, 76, 56), (78, 51, 41)]
) / 255  # fmt: skip
_HAIR = {
    "black": (27, 22, 21), "espresso": (46, 32, 25), "brown": (76, 51, 35),
    "chestnut": (98, 58, 36), "ginger": (146, 74, 35), "dark blond": (132, 98, 60),
    "blond": (186, 148, 95), "platinum": (222, 196, 150), "grey": (128, 125, 122),
    "white": (205, 202, 196),
}  # fmt: skip
_IRIS = {
    "dark": (52, 31, 19), "brown": (86, 51, 27), "hazel": (104, 80, 44), "green": (92, 116, 74),
    "blue": (88, 126, 164), "grey": (118, 132, 142), "amber": (122, 78, 34),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Light:
    """A rig of three lights and a sky. Directions point to the light; colours are linear.

    Attributes:
      key: Direction of the main light, [3], unit.
      key_colour: [3].
      fill: Direction of the fill light, [3], unit.
      fill_colour: [3].
      rim: Direction of the light from behind, [3], unit.
      rim_colour: [3].
      sky: Ambient light from above, [3].
      ground: Ambient light from below, [3].
      softness: Width of the penumbra of the key's shadow, in decimetres.
    """

    key: np.ndarray
    key_colour: np.ndarray
    fill: np.ndarray
    fill_colour: np.ndarray
    rim: np.ndarray
    rim_colour: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    softness: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """One person; colours are sRGB in 0..1.

    Attributes:
      seed: The seed that chose everything.
      race: Shares of `basis.RACES`, [3].
      female: 0 to 1.
      age: 0 is about 25 years, 1 about 90.
      weight: 0 thin, 1 heavy.
      skin: [3].
      melanin: 0 fair, 1 dark.
      lips: [3].
      makeup: Strength of lip and lid colour, 0 to 1.
      freckles: Strength, 0 to 1.
      iris: [3].
      hair: Kind, of `HAIR`.
      hair_colour: [3].
      brow_weight: Thickness of the brows, 0.6 to 1.4.
      beard: Kind, of `BEARD`.
      clothes: Kind, of `CLOTHES`.
      cloth: Colours of the clothes and their trim, [2, 3].
      pattern: 0 plain, 1 stripes, 2 heather, 3 checks.
      headwear: Colour of a cap or a scarf, [3].
      glasses: Whether glasses are worn.
      backdrop: Kind, of `BACKDROP`.
      backdrop_colour: [2, 3].
      light: The light.
      framing: Shift right, shift up, size of the head: three small numbers around zero.
      parting: Where the hair parts, -1 (subject's right) to 1.
      fringe: Whether a bob or long hair has a fringe.
    """

    seed: int
    race: np.ndarray
    female: float
    age: float
    weight: float
    skin: np.ndarray
    melanin: float
    lips: np.ndarray
    makeup: float
    freckles: float
    iris: np.ndarray
    hair: str
    hair_colour: np.ndarray
    brow_weight: float
    beard: str
    clothes: str
    cloth: np.ndarray
    pattern: int
    headwear: np.ndarray
    glasses: bool
    backdrop: str
    backdrop_colour: np.ndarray
    light: Light
    framing: np.ndarray
    parting: float
    fringe: bool

    def macro(self) -> np.ndarray:
        """Coefficients of the targets of build, [M]."""
        return basis_lib.macro_weights(self.race, self.female, self.age, self.weight)

    def local(self, names: tuple[str, ...]) -> np.ndarray:
        """Coefficients of the local shape targets of these names, [L]."""
        return _local(np.random.default_rng([self.seed, 27182]), names)


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def direction(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Unit vector [3]; azimuth 0 is the camera's side, positive to the picture's right."""
    a, e = np.radians([azimuth_deg, elevation_deg])
    return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])


def _warm(temperature: float) -> np.ndarray:
    """Colour of a light, -1 cool to 1 warm, of luminance one."""
    colour = np.array([1 + 0.22 * temperature, 1.0, 1 - 0.32 * temperature])
    return colour / (colour @ [0.2126, 0.7152, 0.0722])


def _light(rng: np.random.Generator) -> Light:
    side = rng.choice([-1.0, 1.0])
    warm = rng.uniform(-0.25, 0.6)
    contrast = rng.uniform(0.0, 1.0)
    key = 2.25 + 0.75 * contrast
    fill = 0.75 - 0.45 * contrast
    ambient = 0.62 - 0.24 * contrast
    cool = -rng.uniform(0.0, 0.5) * np.sign(warm if warm else 1.0)
    return Light(
        key=direction(side * rng.uniform(18, 55), rng.uniform(20, 48)),
        key_colour=key * _warm(warm),
        fill=direction(-side * rng.uniform(30, 65), rng.uniform(0, 20)),
        fill_colour=fill * _warm(cool),
        rim=direction(-side * rng.uniform(125, 160), rng.uniform(15, 40)),
        rim_colour=rng.uniform(0.6, 2.6) * _warm(cool + rng.uniform(-0.2, 0.2)),
        sky=ambient * _warm(cool), ground=ambient * 0.42 * _warm(0.5),
        softness=rng.uniform(0.05, 0.11),
    )  # fmt: skip


def _hair_colour(rng, melanin: float, race: np.ndarray, age: float) -> np.ndarray:
    if rng.random() < age * 1.3 - 0.25:
        name = rng.choice(["grey", "white"], p=[0.55, 0.45])
    elif race[2] > 0.55 and melanin < 0.45:
        name = rng.choice(
            ["black", "espresso", "brown", "chestnut", "ginger", "dark blond", "blond", "platinum"],
            p=[0.05, 0.15, 0.22, 0.13, 0.10, 0.15, 0.15, 0.05],
        )
    else:
        name = rng.choice(["black", "espresso", "brown", "chestnut"], p=[0.56, 0.28, 0.1, 0.06])
    return np.clip(np.array(_HAIR[name]) / 255 * rng.uniform(0.9, 1.1), 0, 1)


def _hair_kind(rng, female: float, age: float) -> str:
    if female > 0.5:
        share = dict(bald=0.01, buzz=0.04, crop=0.07, quiff=0.03, bob=0.22, long=0.26, bun=0.14,
                     curls=0.10, hijab=0.09, cap=0.02, beanie=0.02)  # fmt: skip
    else:
        share = dict(bald=0.12 + 0.1 * age, buzz=0.18, crop=0.24, quiff=0.18, bob=0.02, long=0.03,
                     bun=0.03, curls=0.09, hijab=0.0, cap=0.06, beanie=0.05)  # fmt: skip
    share = np.array([share[name] for name in HAIR])
    return str(rng.choice(HAIR, p=share / share.sum()))


def _local(rng: np.random.Generator, names: tuple[str, ...]) -> np.ndarray:
    """Coefficients of local targets: normal, the same left and right but for a little.

    Neighbours in `names` are the decreasing and the increasing side of one change.
    """
    values = np.zeros(len(names))
    drawn: dict[str, float] = {}
    for low, high in zip(range(0, len(names), 2), range(1, len(names), 2)):
        part, target = names[high].split("/")
        sided = target.startswith(("l-", "r-"))
        base = f"{part}/{target[2:]}" if sided else names[high]
        if base not in drawn:
            drawn[base] = rng.normal(0, SHAPE_STD * _spread(part, target))
        value = drawn[base] + (rng.normal(0, 0.03) if sided else 0)
        values[high if value > 0 else low] = abs(value)
    return values


def _spread(part: str, target: str) -> float:
    """Some changes show more than others, and asymmetric ones hardly occur."""
    if target.endswith(("trans-out", "head-angle-out", "septumangle-incr")):
        return 0.15
    if part == "neck" or "age" in target:
        return 0.4
    if part == "head" and "trans" in target:
        return 0.2
    return {"eyes": 0.75, "mouth": 0.75, "head": 0.8}.get(part, 1.0)


def sample(seed: int, **fixed: Any) -> Identity:
    """Draws a person.

    Args:
      seed: Any non-negative integer; the same seed gives the same person.
      **fixed: Attributes that are set instead of drawn, such as `hair="bob"`.

    Raises:
      ValueError: A negative seed, or an attribute that an identity does not have.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    fields = {field.name for field in dataclasses.fields(Identity)}
    if unknown := sorted(set(fixed) - fields):
        raise ValueError(f"{unknown[0]!r} is no attribute of an identity: {sorted(fields)}.")
    rng = np.random.default_rng([int(seed), 31415])
    female = float(fixed.get("female", rng.random() < 0.5))
    female = female * 0.92 + 0.04
    age = float(rng.beta(1.2, 2.6) * 0.85)
    race = rng.dirichlet([0.5, 0.5, 0.6])
    melanin = float(np.clip(race @ [0.82, 0.34, 0.17] + rng.normal(0, 0.1), 0, 1))
    skin = np.array([np.interp(melanin * 5, np.arange(6), _SKIN[:, c]) for c in range(3)])
    skin = np.clip(skin * rng.uniform(0.97, 1.03, 3), 0, 1)
    hair = str(fixed.get("hair", _hair_kind(rng, female, age)))
    makeup = float(rng.uniform(0.2, 1) * (female > 0.5) * (rng.random() < 0.7))
    beards = [0.30, 0.24, 0.09, 0.13, 0.24] if hair != "bald" else [0.1, 0.2, 0.1, 0.2, 0.4]
    beard = str(rng.choice(BEARD, p=beards)) if female < 0.5 else "none"
    fair = melanin < 0.42 and race[2] > 0.4
    iris = rng.choice(
        list(_IRIS), p=[0.05, 0.2, 0.15, 0.17, 0.25, 0.13, 0.05] if fair
        else [0.5, 0.38, 0.07, 0.01, 0.01, 0.01, 0.02],
    )  # fmt: skip
    accent = rng.random()
    muted = rng.uniform(0.05, 0.40) if rng.random() < 0.8 else rng.uniform(0.4, 0.62)
    cloth = _hsv(accent, muted, rng.uniform(0.16, 0.85))
    trim = _hsv(accent + rng.choice([0.0, 0.08, 0.5]), muted * 0.6, rng.uniform(0.7, 0.95))
    colour = rng.random()
    values: dict[str, Any] = dict(
        seed=int(seed), race=race, female=female, age=age,
        weight=float(np.clip(rng.normal(0.48, 0.14), 0.15, 0.85)),
        skin=skin, melanin=melanin, lips=_lips(rng, skin, makeup), makeup=makeup,
        freckles=float(rng.random() * (fair and rng.random() < 0.35)),
        iris=np.clip(np.array(_IRIS[str(iris)]) / 255 * rng.uniform(0.85, 1.15), 0, 1),
        hair=hair, hair_colour=_hair_colour(rng, melanin, race, age),
        brow_weight=float(rng.uniform(0.75, 1.0) if female > 0.5 else rng.uniform(0.95, 1.3)),
        beard=beard, clothes=str(rng.choice(CLOTHES, p=[0.26, 0.12, 0.2, 0.12, 0.14, 0.16])),
        cloth=np.stack([cloth, trim]), pattern=int(rng.choice(4, p=[0.52, 0.11, 0.26, 0.11])),
        headwear=_hsv(rng.random(), rng.uniform(0.05, 0.42), rng.uniform(0.2, 0.85)),
        glasses=bool(rng.random() < 0.2), backdrop=str(rng.choice(BACKDROP)),
        backdrop_colour=np.stack([
            _hsv(colour, rng.uniform(0.05, 0.4), rng.uniform(0.25, 0.8)),
            _hsv(colour + rng.uniform(-0.1, 0.1), rng.uniform(0.05, 0.4), rng.uniform(0.1, 0.5)),
        ]),
        light=_light(rng), framing=rng.uniform(-1, 1, 3), parting=float(rng.uniform(-1, 1)),
        fringe=bool(rng.random() < 0.35),
    )  # fmt: skip
    return Identity(**(values | fixed | {"female": female}))


def _lips(rng, skin: np.ndarray, makeup: float) -> np.ndarray:
    """Colour of the lips: the skin's, redder and darker, and lipstick."""
    natural = skin * np.array([0.86, 0.60, 0.60]) + np.array([0.035, 0.0, 0.01])
    stick = np.array([[0.62, 0.16, 0.18], [0.70, 0.30, 0.32], [0.55, 0.20, 0.26]])
    return natural + 0.65 * makeup * (stick[rng.integers(3)] - natural)
