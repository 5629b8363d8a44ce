"""Facial actions from phones, and from the motion that also moves the drawn characters.

`speech` turns phone times into the 52 ARKit-named actions by a table with coarticulation, after
Cohen and Massaro (1993), eq. 4 (see `visemes`, whose clock it shares): every phone has a
target for every action and a dominance that rises before and falls after it. Two gates follow:
lips meet on m, b and p, and the mouth is shut in a pause. `face` adds eyes, brows, head and
breath from the curves of `motion`; without phones it takes the mouth from there as well.
"""

import numpy as np

from tm_jax.data.corpus import speech as speech_lib
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.data.synthetic import visemes
from tm_jax.data.synthetic.people import basis
from tm_jax.data.synthetic.people import pose as pose_lib

ACTIONS = basis.ACTIONS
_AT = {name: index for index, name in enumerate(ACTIONS)}
_MOTION = {name: index for index, name in enumerate(motion_lib.COLUMNS)}

# Columns of the table; a name without a side means both sides.
_COLUMNS = (
    "jawOpen", "mouthFunnel", "mouthPucker", "mouthStretch", "mouthSmile", "mouthUpperUp",
    "mouthLowerDown", "mouthRollLower", "mouthShrugUpper", "tongueOut",
)  # fmt: skip
# Targets | dominance of the jaw, of the lips. On this mesh jawOpen 0.3 parts the teeth by
# about a centimetre.
_TABLE = {
    "SIL": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.8, 0.4),
    "AA": (0.44, 0.00, 0.00, 0.05, 0.05, 0.10, 0.20, 0.00, 0.00, 0.00, 1.0, 0.8),
    "AE": (0.37, 0.00, 0.00, 0.28, 0.12, 0.20, 0.25, 0.00, 0.00, 0.00, 1.0, 0.8),
    "AH": (0.30, 0.00, 0.00, 0.05, 0.05, 0.10, 0.18, 0.00, 0.00, 0.00, 0.9, 0.6),
    "AO": (0.33, 0.50, 0.28, 0.00, 0.00, 0.05, 0.10, 0.00, 0.00, 0.00, 1.0, 0.9),
    "AX": (0.16, 0.00, 0.00, 0.00, 0.00, 0.10, 0.15, 0.00, 0.00, 0.00, 0.6, 0.3),
    "EH": (0.28, 0.00, 0.00, 0.25, 0.12, 0.18, 0.25, 0.00, 0.00, 0.00, 0.9, 0.8),
    "IH": (0.15, 0.00, 0.00, 0.25, 0.15, 0.18, 0.25, 0.00, 0.00, 0.00, 0.8, 0.7),
    "IY": (0.11, 0.00, 0.00, 0.38, 0.30, 0.22, 0.32, 0.00, 0.00, 0.00, 0.9, 1.0),
    "UH": (0.15, 0.35, 0.45, 0.00, 0.00, 0.00, 0.10, 0.00, 0.00, 0.00, 0.8, 0.9),
    "UW": (0.11, 0.35, 0.90, 0.00, 0.00, 0.00, 0.05, 0.00, 0.00, 0.00, 0.9, 1.8),
    "UE": (0.11, 0.30, 0.85, 0.00, 0.00, 0.00, 0.05, 0.00, 0.00, 0.00, 0.9, 1.8),
    "OE": (0.18, 0.45, 0.55, 0.00, 0.00, 0.00, 0.10, 0.00, 0.00, 0.00, 0.9, 1.1),
    "ER": (0.15, 0.30, 0.25, 0.00, 0.00, 0.10, 0.15, 0.00, 0.00, 0.00, 0.8, 0.8),
    "M": (0.03, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.12, 0.00, 0.00, 1.0, 0.3),
    "B": (0.03, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.15, 0.00, 0.00, 1.0, 0.3),
    "P": (0.03, 0.00, 0.05, 0.00, 0.00, 0.00, 0.00, 0.15, 0.00, 0.00, 1.0, 0.3),
    "F": (0.07, 0.00, 0.00, 0.05, 0.00, 0.38, 0.00, 0.70, 0.10, 0.00, 2.4, 2.0),
    "V": (0.07, 0.00, 0.00, 0.05, 0.00, 0.36, 0.00, 0.65, 0.10, 0.00, 2.4, 2.0),
    "TH": (0.13, 0.00, 0.00, 0.10, 0.05, 0.20, 0.28, 0.00, 0.00, 0.45, 1.0, 0.8),
    "DH": (0.13, 0.00, 0.00, 0.10, 0.05, 0.18, 0.25, 0.00, 0.00, 0.38, 0.8, 0.6),
    "L": (0.16, 0.00, 0.00, 0.08, 0.05, 0.16, 0.25, 0.00, 0.00, 0.22, 0.6, 0.5),
    "RR": (0.13, 0.05, 0.05, 0.05, 0.00, 0.16, 0.22, 0.00, 0.00, 0.15, 0.6, 0.4),
    "N": (0.11, 0.00, 0.00, 0.08, 0.05, 0.15, 0.22, 0.00, 0.00, 0.10, 0.7, 0.3),
    "T": (0.09, 0.00, 0.00, 0.10, 0.05, 0.20, 0.28, 0.00, 0.00, 0.06, 0.9, 0.4),
    "D": (0.10, 0.00, 0.00, 0.10, 0.05, 0.20, 0.26, 0.00, 0.00, 0.08, 0.8, 0.4),
    "S": (0.05, 0.00, 0.00, 0.25, 0.12, 0.28, 0.42, 0.00, 0.00, 0.00, 1.3, 0.7),
    "Z": (0.06, 0.00, 0.00, 0.25, 0.12, 0.26, 0.40, 0.00, 0.00, 0.00, 1.2, 0.7),
    "SH": (0.06, 0.60, 0.35, 0.00, 0.00, 0.22, 0.25, 0.00, 0.00, 0.00, 1.2, 1.1),
    "ZH": (0.06, 0.60, 0.35, 0.00, 0.00, 0.22, 0.25, 0.00, 0.00, 0.00, 1.2, 1.1),
    "CH": (0.06, 0.52, 0.30, 0.00, 0.00, 0.22, 0.25, 0.00, 0.00, 0.00, 1.2, 1.0),
    "JH": (0.07, 0.52, 0.30, 0.00, 0.00, 0.22, 0.25, 0.00, 0.00, 0.00, 1.2, 1.0),
    "K": (0.13, 0.00, 0.00, 0.05, 0.03, 0.12, 0.18, 0.00, 0.00, 0.00, 0.6, 0.15),
    "G": (0.13, 0.00, 0.00, 0.05, 0.03, 0.12, 0.18, 0.00, 0.00, 0.00, 0.6, 0.15),
    "NG": (0.13, 0.00, 0.00, 0.05, 0.03, 0.12, 0.18, 0.00, 0.00, 0.00, 0.6, 0.15),
    "KH": (0.15, 0.00, 0.00, 0.05, 0.03, 0.10, 0.15, 0.00, 0.00, 0.00, 0.5, 0.15),
    "HH": (0.16, 0.00, 0.00, 0.00, 0.00, 0.08, 0.12, 0.00, 0.00, 0.00, 0.3, 0.08),
    "W": (0.06, 0.30, 1.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 1.5, 2.4),
    "R": (0.10, 0.55, 0.35, 0.00, 0.00, 0.10, 0.15, 0.00, 0.00, 0.00, 0.9, 0.9),
    "Y": (0.09, 0.00, 0.00, 0.32, 0.25, 0.20, 0.28, 0.00, 0.00, 0.00, 0.8, 0.8),
}  # fmt: skip
_NAMES = tuple(_TABLE)
_TARGETS = np.array([_TABLE[name] for name in _NAMES])
_ROW = {name: row for row, name in enumerate(_NAMES)}
# What keeps lips apart even with the jaw shut.
_PARTING = ("mouthUpperUp", "mouthLowerDown", "tongueOut", "mouthShrugUpper", "mouthFunnel")
_JAW_COLUMNS = np.array([name in ("jawOpen", "tongueOut") for name in _COLUMNS])

_REACH_BEFORE_S = (0.045, 0.085)  # Of the jaw, of the lips.
_REACH_AFTER_S = (0.048, 0.060)
_LEAD_S = (0.015, 0.040)
_EXPONENT = 1.5
_PRIOR = 1e-4
_BILABIALS = tuple(speech_lib.PHONE_ID[name] for name in "MBP")
_SIL = speech_lib.PHONE_ID["SIL"]
_SHUT_MIN_S, _SHUT_RAMP_S = 0.026, 0.055
_PAUSE_MIN_S, _PAUSE_RAMP_S = 0.14, 0.11
_SHUT_JAW = 0.05  # Jaw behind shut lips.

# Angles in radians and shifts in decimetres at motion 1.
_YAW, _PITCH, _ROLL = 0.40, 0.20, 0.15
_SHIFT_X, _SHIFT_Y = 0.16, 0.07
_GAZE_X, _GAZE_Y = 0.45, 0.30


def _sides(name: str) -> list[int]:
    """Columns of an action on both sides of the face."""
    return [_AT[n] for n in (name, f"{name}Left", f"{name}Right") if n in _AT]


def neutral() -> np.ndarray:
    """The face at rest, zeros [52]."""
    return np.zeros(len(ACTIONS), np.float32)


def viseme(phone: str) -> np.ndarray:
    """The actions of a phone that is held alone, [52]; a diphthong shows its first vowel.

    Raises:
      ValueError: No such phone.
    """
    name = visemes.DIPHTHONGS.get(phone, (phone,))[0]
    if name not in _ROW:
        raise ValueError(f"phone {phone!r} is unknown; expected one of {speech_lib.PHONES}.")
    shut = np.array([float(name in ("M", "B", "P"))])
    return _assemble(_TARGETS[[_ROW[name]], : len(_COLUMNS)], shut, np.zeros(1))[0]


def speech(
    phones: np.ndarray, num_frames: int, fps: float = 25, audio: np.ndarray | None = None
) -> np.ndarray:
    """Facial actions of the mouth while a sentence is spoken.

    Frame j shows the interval [j / fps, (j + 1) / fps) and is evaluated at its centre.

    Args:
      phones: Rows (start_s, end_s, id), [N, 3], in order of time. Time before the first and
        after the last phone is silence.
      num_frames: Frames to return.
      fps: Frames per second.
      audio: Optional float [samples] at 16 kHz; a loud vowel opens wider than a soft one.

    Returns:
      Actions [num_frames, 52], float32, in [0, 1].
    """
    phones = np.asarray(phones, np.float64).reshape(-1, 3)
    if not len(phones) or not num_frames:
        return np.zeros((num_frames, len(ACTIONS)), np.float32)
    times = (np.arange(num_frames) + 0.5) / fps
    values = _blend(times, phones)
    if audio is not None:
        loud = visemes.mouth_curves(phones, num_frames, fps, audio)[:, 0]
        plain = visemes.mouth_curves(phones, num_frames, fps)[:, 0]
        values[:, 0] *= np.clip((loud + 0.02) / (plain + 0.02), 0.3, 1.2)
    return _assemble(values, _shut(times, phones), _rest(times, phones))


def _segments(phones: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits diphthongs; returns starts [S], ends [S] and table rows [S]."""
    segments = [(-10.0, phones[0, 0], _ROW["SIL"])]
    for start, end, phone in phones:
        name = speech_lib.PHONES[int(phone)]
        first, second, share = visemes.DIPHTHONGS.get(name, (name, name, 1.0))
        middle = start + share * (end - start)
        segments.append((start, middle, _ROW[first]))
        if second != first:
            segments.append((middle, end, _ROW[second]))
    segments.append((phones[-1, 1], 1e4, _ROW["SIL"]))
    starts, ends, rows = zip(*segments)
    return np.array(starts), np.array(ends), np.array(rows)


def _blend(times: np.ndarray, phones: np.ndarray) -> np.ndarray:
    """Dominance-weighted targets, [T, columns]."""
    starts, ends, rows = _segments(phones)
    centre, half = (starts + ends) / 2, (ends - starts) / 2
    core = np.maximum(0.5 * half, half - 0.04)
    values = np.empty((len(times), len(_COLUMNS)))
    for group, columns in enumerate((_JAW_COLUMNS, ~_JAW_COLUMNS)):
        strength = _TARGETS[rows, len(_COLUMNS) + group] * np.minimum(1, 0.35 + half / 0.05)
        offset = times[:, None] + _LEAD_S[group] - centre
        distance = np.maximum(np.abs(offset) - core, 0)
        reach = np.where(offset < 0, _REACH_BEFORE_S[group], _REACH_AFTER_S[group])
        weight = strength * np.exp(-((distance / reach) ** _EXPONENT))
        targets = _TARGETS[rows][:, : len(_COLUMNS)][:, columns]
        values[:, columns] = weight @ targets / (weight.sum(1, keepdims=True) + _PRIOR)
    return values


def _ramp(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _shut(times: np.ndarray, phones: np.ndarray) -> np.ndarray:
    """How far m, b and p shut the lips, [T]."""
    lips = phones[np.isin(phones[:, 2], _BILABIALS)]
    if not len(lips):
        return np.zeros(len(times))
    half = np.maximum(0.35 * (lips[:, 1] - lips[:, 0]), _SHUT_MIN_S)
    distance = np.abs(times[:, None] - (lips[:, 0] + lips[:, 1]) / 2) - half
    return np.max(1 - _ramp(distance / _SHUT_RAMP_S), axis=1)


def _rest(times: np.ndarray, phones: np.ndarray) -> np.ndarray:
    """How far pauses shut the mouth, [T]."""
    pauses = phones[phones[:, 2] == _SIL][:, :2]
    pauses = np.concatenate([pauses, [[-10.0, phones[0, 0]], [phones[-1, 1], 1e4]]])
    pauses[pauses[:, 0] <= phones[0, 0], 0] = -10.0
    pauses[pauses[:, 1] >= phones[-1, 1], 1] = 1e4
    start, end = pauses.T
    depth = _ramp((end - start) / _PAUSE_MIN_S)
    fall = _ramp((times[:, None] - start) / _PAUSE_RAMP_S)
    rise = _ramp((end - times[:, None]) / _PAUSE_RAMP_S)
    return np.max(depth * np.minimum(fall, rise), axis=1)


def _assemble(values: np.ndarray, shut: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Spreads table columns over the 52 actions and lets lips meet, [T, 52].

    Args:
      values: [T, columns].
      shut: How far the lips are pressed together, [T].
      rest: How far the mouth is at rest, [T].
    """
    actions = np.zeros((len(values), len(ACTIONS)), np.float32)
    free = (1 - shut) * (1 - rest)
    for column, name in enumerate(_COLUMNS):
        value = values[:, column]
        if name in _PARTING:
            value = value * free
        elif name == "jawOpen":
            value = value * free + _SHUT_JAW * shut * (1 - rest)
        else:
            value = value * (1 - 0.6 * rest) * (1 - 0.4 * shut)
        actions[:, _sides(name)] = value[:, None]
    # Lips stay together while the jaw behind them is a little open.
    actions[:, _AT["mouthClose"]] = shut * actions[:, _AT["jawOpen"]]
    press = 0.35 * shut * (1 - rest)
    actions[:, _sides("mouthPress")] += press[:, None]
    actions[:, _AT["mouthRollUpper"]] += 0.10 * shut * (1 - rest)
    return np.clip(actions, 0, 1)


def from_curves(mouth: np.ndarray) -> np.ndarray:
    """Mouth actions from the mouth curves of the drawn characters.

    Args:
      mouth: Curves [T, 6] in the order of `visemes.COLUMNS`.

    Returns:
      Actions [T, 52]; where the curves shut the mouth the lips meet.
    """
    mouth = np.asarray(mouth, np.float64)
    if mouth.ndim != 2 or mouth.shape[1] != len(visemes.COLUMNS):
        raise ValueError(f"mouth: expected [T, 6], got shape {mouth.shape}.")
    opening, width, rounded, teeth, tongue, _ = mouth.T
    spread, narrow = np.maximum(width, 0), np.maximum(-width, 0)
    table = {
        "jawOpen": 0.44 * opening * (1 - 0.15 * rounded),
        "mouthFunnel": 0.55 * rounded * np.minimum(opening / 0.5, 1) + 0.15 * rounded,
        "mouthPucker": 0.75 * np.maximum(rounded, 0.5 * narrow) * (1 - 0.45 * opening),
        "mouthStretch": 0.42 * spread, "mouthSmile": 0.28 * spread,
        "mouthUpperUp": 0.28 * teeth, "mouthLowerDown": 0.18 * opening + 0.36 * teeth,
        "mouthRollLower": 0.55 * np.maximum(teeth - 0.6, 0) * np.maximum(1 - opening / 0.10, 0),
        "mouthShrugUpper": 0 * opening, "tongueOut": 0.40 * tongue,
    }  # fmt: skip
    values = np.stack([table[name] for name in _COLUMNS], 1)
    shut = 1 - _ramp((opening + 0.5 * teeth) / 0.06)
    return _assemble(values, shut * 0, shut)


def face(motion: np.ndarray, mouth: np.ndarray | None = None) -> tuple[np.ndarray, list]:
    """Everything that moves in a clip.

    Args:
      motion: Motion curves [T, 17] in the order of `motion.COLUMNS`.
      mouth: Mouth actions [T, 52] of `speech`; by default from the curves' first six columns.

    Returns:
      Actions [T, 52] and a `pose.Pose` for every frame.
    """
    motion = np.asarray(motion, np.float64)
    if motion.ndim != 2 or motion.shape[1] != len(_MOTION):
        raise ValueError(f"motion: expected [T, {len(_MOTION)}], got shape {motion.shape}.")
    if mouth is None:
        mouth = from_curves(motion[:, : len(visemes.COLUMNS)])
    if mouth.shape != (len(motion), len(ACTIONS)):
        raise ValueError(
            f"mouth: expected [{len(motion)}, {len(ACTIONS)}], got shape {mouth.shape}."
        )
    actions = np.array(mouth, np.float32)
    get = {name: motion[:, column] for name, column in _MOTION.items()}

    def add(name, value):
        actions[:, _sides(name)] += np.asarray(value, np.float32)[:, None]

    smile = np.clip(get["smile"], 0, 1)
    add("mouthSmile", 0.55 * smile)
    add("cheekSquint", 0.30 * smile)
    add("eyeSquint", 0.18 * smile)
    add("browInnerUp", 0.65 * np.maximum(get["brow"], 0))
    add("browOuterUp", 0.55 * np.maximum(get["brow"], 0))
    add("browDown", 0.55 * np.maximum(-get["brow"], 0))
    add("eyeWide", 0.25 * np.maximum(get["brow"], 0))
    down = get["gaze_y"] * _GAZE_Y / 0.30
    add("eyeLookDown", 0.9 * np.maximum(down, 0))
    add("eyeLookUp", 0.7 * np.maximum(-down, 0))
    # The picture's left is the subject's right.
    actions[:, _AT["eyeBlinkRight"]] += get["blink_left"]
    actions[:, _AT["eyeBlinkLeft"]] += get["blink_right"]
    return np.clip(actions, 0, 1), _poses(get)


def _poses(get: dict[str, np.ndarray]) -> list[pose_lib.Pose]:
    rows = zip(*(get[n] for n in ("yaw", "pitch", "roll", "head_x", "head_y", "breath",
                                  "gaze_x", "gaze_y")))  # fmt: skip
    return [
        pose_lib.Pose(
            yaw=float(np.clip(_YAW * yaw, -pose_lib.MAX_YAW, pose_lib.MAX_YAW)),
            pitch=float(np.clip(_PITCH * pitch, -pose_lib.MAX_PITCH, pose_lib.MAX_PITCH)),
            roll=float(_ROLL * roll), shift=(float(_SHIFT_X * x), float(-_SHIFT_Y * y)),
            breath=float(breath), gaze=(float(_GAZE_X * gx), float(_GAZE_Y * gy)),
        )
        for yaw, pitch, roll, x, y, breath, gx, gy in rows
    ]  # fmt: skip
