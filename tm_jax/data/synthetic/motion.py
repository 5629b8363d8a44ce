"""All motion of a face but its speech: eyes, brows, head and breath.

`talking` adds them to given mouth curves, `listening` makes a face that attends with its
mouth shut and answers another voice, `conversing` does both by turns, `portrait` is a still
pose. Everything is drawn from one numpy Generator.

All columns but the mouth's are dimensionless: blinks and breath lie in [0, 1] (1 is
shut, 1 is lungs full), brow in [-1, 1] (1 is raised), gaze, head angles and head
position in [-1, 1] with 0 at rest.
"""

import numpy as np

from tm_jax.data.synthetic import backchannel

COLUMNS = (
    "mouth_open", "mouth_width", "mouth_round", "teeth", "tongue", "smile",
    "blink_left", "blink_right", "gaze_x", "gaze_y", "brow",
    "yaw", "pitch", "roll", "head_x", "head_y", "breath",
)  # fmt: skip
_AT = {name: column for column, name in enumerate(COLUMNS)}
_HEAD = [_AT[name] for name in ("yaw", "pitch", "roll", "head_x", "head_y")]

BODY = [_AT[name] for name in ("yaw", "pitch", "roll", "head_x", "head_y", "breath")]

# Eyes, brows and smile: what speech does not determine of a face at rest.
EXPRESSION = [
    _AT[name] for name in ("blink_left", "blink_right", "gaze_x", "gaze_y", "brow", "smile")
]

_HEAD_STD = 0.30
_LIMIT = 0.9
_BAND_HZ = (0.05, 0.8)  # Of slow motion.
_WAVES = 8

# People at rest blink 10 to 20 times a minute, more often while they talk (Bentivoglio
# et al. 1997: 17 at rest, 26 in conversation). The lids fall faster than they rise.
_BLINK_EVERY_S = {"talking": 3.3, "listening": 3.7}
_BLINK_REFRACTORY_S = 0.8
_BLINK_FALL_S = 0.10
_BLINK_RISE_S = (0.16, 0.20)

_SACCADE_EVERY_S = 2.2
_SACCADE_HOLD_S = (0.25, 0.9)
# Who listens looks at the speaker far more than who talks (Argyle and Cook 1976: 75 % of the
# time against 40 %): most glances are left out, and one that lasts ends when speech begins.
_GLANCES_LEFT_OUT = 0.85
_LOOKS_BACK_S = (0.1, 0.35)
_NOD_S = 0.45
_TURN_S = 0.5  # In which a smile changes between talking and listening.


def talking(
    rng: np.random.Generator, mouth: np.ndarray, fps: float = 25,
    speech_activity: np.ndarray | None = None
) -> np.ndarray:
    """Adds eyes, brows, head and breath to the mouth of a speaker.

    Args:
      rng: numpy Generator.
      mouth: Mouth curves, [T, 6], in the order of the first six `COLUMNS`.
      fps: Frames per second.
      speech_activity: How much each frame talks, [T] in [0, 1]; by default read off
        the opening of the mouth.

    Returns:
      Motion [T, 17], float32.
    """
    mouth = np.asarray(mouth, np.float32)
    if mouth.ndim != 2 or mouth.shape[1] != 6:
        raise ValueError(f"mouth: expected [T, 6], got shape {mouth.shape}.")
    opening = _smooth(mouth[:, 0], 0.1 * fps)
    if speech_activity is None:
        speech_activity = np.clip(_smooth(opening, 0.3 * fps) / 0.1, 0, 1)
    motion = _base(rng, len(mouth), fps, "talking")
    motion[:, :6] = mouth
    smile = np.clip(0.10 + 0.12 * _noise(rng, len(mouth), fps, 1)[:, 0], 0, 0.4)
    motion[:, 5] = np.clip(mouth[:, 5] + smile, 0, 1)
    _stress(rng, motion, opening, np.asarray(speech_activity), fps)
    return _finish(motion)


def listening(
    rng: np.random.Generator, num_frames: int, fps: float = 25, other: np.ndarray | None = None
) -> np.ndarray:
    """Returns a face that attends to somebody: mouth shut, blinks, nods.

    Args:
      rng: numpy Generator.
      num_frames: Frames to return.
      fps: Frames per second.
      other: Whether the other party speaks in each frame, [num_frames] in [0, 1]. While it
        does, the face looks at it; when it pauses, the face nods now and then, raises its
        brows or smiles. Left out, nobody is heard.

    Returns:
      Motion [num_frames, 17], float32.
    """
    if other is not None:
        other = _track(other, num_frames, "other")
    motion = _base(rng, num_frames, fps, "listening", other)
    smile = 0.15 + 0.12 * _noise(rng, num_frames, fps, 1)[:, 0]
    motion[:, _AT["smile"]] = np.clip(smile, 0, 0.45)
    _attend(rng, motion, fps, other)
    return _finish(motion)


def conversing(
    rng: np.random.Generator, mouth: np.ndarray, speaks: np.ndarray, other: np.ndarray,
    fps: float = 25
) -> np.ndarray:
    """Returns a face that talks and listens by turns.

    Args:
      rng: numpy Generator.
      mouth: Mouth curves, [T, 6]; used where the face speaks.
      speaks: Whether the face speaks, [T] in [0, 1].
      other: Whether the other party speaks, [T] in [0, 1].
      fps: Frames per second.

    Returns:
      Motion [T, 17], float32. Head, gaze, lids and breath go on through every change; a
      gesture belongs to the turn in which its middle lies, and is made in full.
    """
    mouth = np.asarray(mouth, np.float32)
    num_frames = len(mouth)
    speaks = _track(speaks, num_frames, "speaks") > 0.5
    other = np.where(speaks, 0, _track(other, num_frames, "other"))
    mouth = mouth * speaks[:, None]
    opening = _smooth(mouth[:, 0], 0.1 * fps)
    motion = _base(rng, num_frames, fps, "talking", other)
    motion[:, :6] = mouth
    turn = _smooth(speaks.astype(float), _TURN_S * fps)
    smile = 0.15 - 0.05 * turn + 0.12 * _noise(rng, num_frames, fps, 1)[:, 0]
    smile = np.clip(smile, 0, 0.45) + _smooth(mouth[:, 5], 0.2 * fps)
    motion[:, _AT["smile"]] = np.clip(smile, 0, 1)
    activity = speaks * np.clip(_smooth(opening, 0.3 * fps) / 0.1, 0, 1)
    _stress(rng, motion, opening, activity, fps)
    _attend(rng, motion, fps, other, busy=speaks)
    return _finish(motion)


def _track(values, num_frames, name):
    values = np.asarray(values, np.float32)
    if values.shape != (num_frames,):
        raise ValueError(f"{name}: expected [{num_frames}], got shape {values.shape}.")
    return values


def _stress(rng, motion, opening, activity, fps):
    """Adds the nods and brows that go with stressed syllables."""
    num_frames = len(motion)
    stressed = _stressed(opening, fps)
    chosen = stressed[rng.random(len(stressed)) < 0.5]
    size = rng.uniform(0.12, 0.35, len(chosen)) * activity[chosen]
    # The head falls with the syllable and comes back after it.
    nods = _bumps(num_frames, fps, chosen / fps + 0.04, size, _NOD_S)
    motion[:, _AT["pitch"]] += nods
    raised = rng.random(len(chosen)) < 0.45
    motion[:, _AT["brow"]] += _bumps(
        num_frames, fps, chosen[raised] / fps, 2.0 * size[raised] + 0.15, 0.7
    )


def _attend(rng, motion, fps, other=None, busy=None):
    """Adds a listener's gestures: answers to another voice, and others while all is quiet.

    Args:
      rng: numpy Generator.
      motion: [T, 17], changed in place.
      fps: Frames per second.
      other: Whether the other party speaks, [T]; None if nobody is there.
      busy: Where the face itself speaks, bool [T].
    """
    num_frames = len(motion)
    busy = np.zeros(num_frames, bool) if busy is None else busy
    quiet = ~busy
    if other is not None:
        quiet &= ~backchannel.attention(other, fps)

    def kept(times_s, where):
        frame = np.clip(np.round(np.asarray(times_s) * fps).astype(int), 0, num_frames - 1)
        return where[frame]

    def add(column, times_s, sizes, width_s, where):
        sizes = np.asarray(sizes) * kept(times_s, where)
        motion[:, _AT[column]] += _bumps(num_frames, fps, times_s, sizes, width_s)

    for start in _events(rng, num_frames / fps, 5.0, 2.0):  # One to three nods in a row.
        count = rng.integers(1, 4)
        at = start + backchannel.NOD_S * np.arange(count)
        size = rng.uniform(0.25, 0.5) * 0.75 ** np.arange(count)
        add("pitch", at, size * kept([start], quiet), backchannel.NOD_S, ~busy)
    lifts = _events(rng, num_frames / fps, 6.0, 1.5)
    add("brow", lifts, rng.uniform(0.2, 0.55, len(lifts)), 0.9, quiet)
    if other is None:
        return
    answers = backchannel.answers(rng, other, fps)
    add("pitch", answers.nods, answers.nod_sizes, backchannel.NOD_S, ~busy)
    add("brow", answers.lifts, answers.lift_sizes, 0.9, ~busy)
    add("smile", answers.smiles, answers.smile_sizes, 1.8, ~busy)


def portrait(rng: np.random.Generator) -> np.ndarray:
    """Returns the pose of a reference picture: nearly neutral, eyes open, [17]."""
    pose = np.zeros(len(COLUMNS))
    pose[_HEAD] = 0.1 * rng.standard_normal(len(_HEAD))
    pose[[_AT["gaze_x"], _AT["gaze_y"]]] = 0.05 * rng.standard_normal(2)
    pose[_AT["brow"]] = 0.08 * rng.standard_normal()
    pose[_AT["smile"]] = rng.uniform(0, 0.3)
    pose[_AT["breath"]] = rng.uniform(0, 1)
    return np.clip(pose, -0.4, 1).astype(np.float32)


def _base(rng, num_frames, fps, kind, other=None):
    """Returns what talking and listening share; the mouth is left at 0.

    The gaze stays on the other party while it speaks, `other` [num_frames].
    """
    motion = np.zeros((num_frames, len(COLUMNS)))
    motion[:, _HEAD] = _HEAD_STD * _noise(rng, num_frames, fps, len(_HEAD))
    motion[:, _AT["brow"]] = 0.10 * _noise(rng, num_frames, fps, 1)[:, 0]
    gaze = _gaze(rng, num_frames, fps, other)
    motion[:, _AT["gaze_x"]], motion[:, _AT["gaze_y"]] = gaze.T
    blink = _blinks(rng, num_frames, fps, _BLINK_EVERY_S[kind])
    motion[:, _AT["blink_left"]] = motion[:, _AT["blink_right"]] = blink
    motion[:, _AT["breath"]] = _breath(rng, num_frames, fps)
    return motion


def _finish(motion):
    columns = [*_HEAD, _AT["brow"], _AT["gaze_x"], _AT["gaze_y"]]
    motion[:, columns] = _LIMIT * np.tanh(motion[:, columns] / _LIMIT)
    return motion.astype(np.float32)


def _noise(rng, num_frames, fps, channels):
    """Smooth noise of standard deviation 1 within `_BAND_HZ`, [num_frames, channels]."""
    shape = (_WAVES, channels)
    hz = np.exp(rng.uniform(*np.log(_BAND_HZ), shape))
    phase = rng.uniform(0, 2 * np.pi, shape)
    size = rng.rayleigh(1.0, shape) / (0.2 + hz)  # Slow waves are the large ones.
    size *= np.sqrt(2 / np.mean(np.sum(np.square(size), axis=0)))
    times = np.arange(num_frames)[:, None, None] / fps
    return np.sum(size * np.cos(2 * np.pi * hz * times + phase), axis=1)


def _events(rng, duration_s, every_s, refractory_s):
    """Returns times of a Poisson process with a dead time, in (0, duration_s)."""
    count = int(duration_s / every_s * 2) + 8
    gaps = refractory_s + rng.exponential(every_s - refractory_s, count)
    gaps[0] = rng.uniform(0, every_s)
    times = np.cumsum(gaps)
    return times[times < duration_s]


def _blinks(rng, num_frames, fps, every_s):
    """Returns the lids of both eyes, [num_frames] in [0, 1]."""
    duration_s = num_frames / fps
    centre = np.round(_events(rng, duration_s, every_s, _BLINK_REFRACTORY_S) * fps)
    rise = rng.uniform(*_BLINK_RISE_S, len(centre))
    offset = (np.arange(num_frames)[:, None] - centre) / fps  # [T, blinks]
    span = np.where(offset < 0, _BLINK_FALL_S, rise)
    lids = _step(1 - np.abs(offset) / span)
    return lids.max(axis=1, initial=0)


def _gaze(rng, num_frames, fps, other=None):
    """Returns gaze [num_frames, 2]: at the camera, with short glances away.

    While another voice is heard, `other` [num_frames], there are few of them.
    """
    duration_s = num_frames / fps
    starts = _events(rng, duration_s, _SACCADE_EVERY_S, 0.6)
    hold = rng.uniform(*_SACCADE_HOLD_S, len(starts))
    targets = rng.uniform(-0.5, 0.5, (len(starts), 2)) * (1.0, 0.6)
    if other is not None:
        starts, hold, targets = _watch(rng, starts, hold, targets, other, fps)
    times = np.arange(num_frames)[:, None] / fps
    jump_s = 1.5 / fps  # A saccade takes 20 to 80 ms: one frame in between, or none.
    away = np.clip((times - starts) / jump_s, 0, 1)
    away -= np.clip((times - starts - hold) / jump_s, 0, 1)  # [T, glances]
    drift = 0.015 * _noise(rng, num_frames, fps, 2)
    return np.clip(away @ targets + drift, -0.8, 0.8)


def _watch(rng, starts, hold, targets, other, fps):
    """Leaves out most glances during phrases of another voice, and cuts those before them."""
    chosen = rng.random(len(starts)) < _GLANCES_LEFT_OUT
    reaction = rng.uniform(*_LOOKS_BACK_S, len(starts))
    kept = np.ones(len(starts), bool)
    hold = hold.copy()
    for first, last in backchannel.phrases(other, fps) / fps:
        kept &= ~(chosen & (starts >= first) & (starts < last))
        before = chosen & (starts < first) & (starts + hold > first)
        hold[before] = np.minimum(hold, first + reaction - starts)[before]
    return starts[kept], hold[kept], targets[kept]


def _breath(rng, num_frames, fps):
    """Returns how full the lungs are, about one breath in four seconds, [num_frames]."""
    drift = 0.4 * _noise(rng, num_frames, fps, 1)[:, 0]
    hz = rng.uniform(0.21, 0.29)
    phase = 2 * np.pi * hz * np.arange(num_frames) / fps + rng.uniform(0, 2 * np.pi)
    return 0.5 - 0.5 * np.cos(phase + drift)


def _stressed(opening, fps):
    """Returns frames where the mouth opens widest, at least 0.35 s apart."""
    if len(opening) < 3:
        return np.zeros(0, int)
    reach = max(int(0.35 * fps), 1)
    padded = np.pad(opening, reach, constant_values=-1)
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1)
    floor = max(0.12, np.quantile(opening, 0.6))
    return np.flatnonzero((opening >= highest) & (opening > floor))


def _bumps(num_frames, fps, centres_s, sizes, width_s):
    """Sums raised cosines of a full width, [num_frames]."""
    times = np.arange(num_frames)[:, None] / fps
    offset = np.clip((times - np.asarray(centres_s)) / width_s, -0.5, 0.5)
    return (0.5 + 0.5 * np.cos(2 * np.pi * offset)) @ np.asarray(sizes, np.float64)


def _step(x):
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _smooth(values, frames):
    """Averages over a Hann window of about the given number of frames, [T]."""
    window = np.hanning(max(int(round(frames)), 1) + 2)
    half = len(window) // 2
    padded = np.convolve(values, window / window.sum())
    return padded[half : half + len(values)]
