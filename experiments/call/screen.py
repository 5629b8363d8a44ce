"""What callers see and hear in a real browser: order, lateness, picture against sound.

Works on what `probe.js` has noted: frames with their marks and the time they came to the
screen, and the loudness of the sound that was heard meanwhile.
"""

import itertools
import pathlib
import tempfile
import time

import numpy as np

from experiments.call import chromium
from experiments.call import host
from experiments.call import marks

_FRAME_MS = 40.0
_AROUND = 50  # Frames on both sides that say where a frame belongs in time.
_WINDOW_MS = 5000.0  # Of one comparison of picture and sound.
_LAGS_MS = np.arange(-300.0, 301.0, 5.0)
_VOICE_LAGS_MS = np.arange(0.0, 2501.0, 10.0)
_ALIKE = 0.6  # Correlation from which on a window counts: silence says nothing.
_SAMPLE_S = 1.0  # Between two looks at what the host takes.
_STOLEN = 0.01  # Part of the processors that the host may take from an undisturbed second.
_START_S = 3.0  # Play-out finds its pace.


def unwrap(numbers: np.ndarray) -> np.ndarray:
    """Numbers that begin again at 0 as numbers that only grow."""
    period = 1 << marks.BITS
    steps = (np.diff(numbers) + period // 2) % period - period // 2
    return np.concatenate([[0], np.cumsum(steps)])


def lateness(numbers: np.ndarray, ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which frames came late, and where frames never came.

    Args:
      numbers: Unwrapped numbers in the order of appearance, [n].
      ms: Times of appearance, [n].

    Returns:
      Whether each was shown more than its own duration after its place among the frames
      around it, [n] bool, and how many frames before each were never shown, [n].
    """
    delay = ms - _FRAME_MS * numbers
    late = np.zeros(len(delay), bool)
    for index in range(len(delay)):
        around = delay[max(0, index - _AROUND) : index + _AROUND + 1]
        late[index] = delay[index] - np.median(around) > _FRAME_MS
    order = np.argsort(numbers, kind="stable")
    missing = np.zeros(len(numbers), int)
    missing[order[1:]] = np.maximum(np.diff(numbers[order]) - 1, 0)
    return late, missing


def offsets(
    frame_ms: np.ndarray, levels: np.ndarray, sounds: list[dict], lags_ms: np.ndarray = _LAGS_MS
) -> list[float]:
    """Milliseconds that the picture is behind a sound, for each stretch with speech.

    Args:
      frame_ms: When frames appeared, [n].
      levels: How loud their own sound is, [n].
      sounds: How loud it was and when: level, ms.
      lags_ms: Shifts to compare.

    Returns:
      For each five seconds the shift at which loudness fits the frames' own best.
    """
    sounds = sorted(sounds, key=lambda s: s["ms"])
    sound_ms = np.array([s["ms"] for s in sounds])
    loudness = np.array([s["level"] for s in sounds])
    total = np.cumsum(loudness * np.diff(sound_ms, prepend=sound_ms[0]))
    found = []
    for start in np.arange(frame_ms[0], frame_ms[-1] - _WINDOW_MS, _WINDOW_MS):
        inside = (frame_ms >= start) & (frame_ms < start + _WINDOW_MS)
        times, own = frame_ms[inside], levels[inside]
        if len(own) < 50 or own.std() < 1e-6:
            continue
        alike = []
        for lag in lags_ms:
            ends = np.interp((times - lag, times - lag + _FRAME_MS), sound_ms, total)
            heard = ends[1] - ends[0]
            alike.append(np.corrcoef(own, heard)[0, 1] if heard.std() > 1e-9 else 0.0)
        best = int(np.argmax(alike))
        if alike[best] >= _ALIKE:
            found.append(float(lags_ms[best]))
    return found


def undisturbed(ms: np.ndarray, samples: list[tuple[float, int, int]]) -> np.ndarray:
    """Whether the machine was this guest's alone at given times, [n] bool.

    Args:
      ms: Times, [n].
      samples: Times and `host.ticks` then, growing.
    """
    found = np.zeros(len(ms), bool)
    for (start, total, stolen), (end, more, taken) in itertools.pairwise(samples):
        if taken - stolen <= _STOLEN * (more - total):
            found |= (ms >= start) & (ms < end)
    return found


def summary(
    frames: list[dict], sounds: list[dict], voice: list[dict], first_s: float, samples=()
) -> dict:
    """What one caller saw, as plain numbers.

    Args:
      frames: Of `probe.js`: number, level, ms.
      sounds: Of `probe.js`, what was heard: level, ms.
      voice: And what the microphone took; the avatar repeats it.
      first_s: From *Call* to the first frame.
      samples: Times on the page's clock, and what the host had taken by then (`undisturbed`).
    """
    ms = np.array([f["ms"] for f in frames])
    numbers = unwrap(np.array([f["number"] for f in frames]))
    kept = ms > ms[0] + 1000 * _START_S
    ms, numbers = ms[kept], numbers[kept]
    levels = np.array([f["level"] for f in frames], float)[kept]
    late, missing = lateness(numbers, ms)
    found = offsets(ms, levels, sounds)
    lags = offsets(ms, levels, voice, _VOICE_LAGS_MS)
    bad = late + missing
    alone = undisturbed(ms, list(samples))
    count = len(numbers) + missing.sum()
    return {
        "first_frame_ms": round(1000 * first_s, 1),
        "seconds": round((ms[-1] - ms[0]) / 1000, 1),
        "frames_per_second": round(1000 * (len(numbers) - 1) / (ms[-1] - ms[0]), 2),
        "out_of_order": int((np.diff(numbers) < 0).sum()),
        "late": int(late.sum()), "missing": int(missing.sum()),
        "late_share": round(float(bad.sum() / count), 5),
        "undisturbed_seconds": round(float(alone.sum() * _FRAME_MS / 1000), 1),
        "undisturbed_late_share":
            round(float(bad[alone].sum() / (1 + missing)[alone].sum()), 5) if alone.any() else None,
        "offset_windows": len(found),
        "picture_after_sound_ms": {
            "least": min(found, default=None), "most": max(found, default=None),
            "median": float(np.median(found)) if found else None,
        },
        "voice_to_picture_ms": {
            "windows": len(lags), "median": float(np.median(lags)) if lags else None,
            "p95": round(float(np.percentile(lags, 95))) if lags else None,
        },
    }


def watch(url: str, transport: str, callers: int, seconds: float) -> list[dict]:
    """Makes calls from a browser at the same time; returns `summary` of each.

    The avatar repeats the caller's own voice, a recording, and the page plays it back.

    Args:
      url: A server with marks.
      transport: "websocket" or "webrtc".
      callers: Pages that call, one begun after the other.
      seconds: Length of the calls.
    """
    probe = pathlib.Path(__file__).parent / "probe.js"
    with tempfile.TemporaryDirectory() as folder:
        voice = pathlib.Path(folder) / "voice.wav"
        chromium.write_voice(voice)
        with chromium.launch(voice) as browser:
            pages = []
            for _ in range(callers):
                context = browser.new_context(permissions=["microphone"])
                context.add_init_script(path=probe)
                page = context.new_page()
                page.goto(f"{url}/?transport={transport}")
                page.wait_for_selector(".face img")
                page.evaluate("document.getElementById('own').click()")  # Hear oneself.
                began_s = time.monotonic()
                page.click("#call")
                page.wait_for_selector("body[data-state=live]", timeout=60000)
                pages.append((page, time.monotonic() - began_s))
            samples = [(1000 * time.time(), *host.ticks())]
            while samples[-1][0] - samples[0][0] < 1000 * (seconds + _START_S):
                pages[-1][0].wait_for_timeout(1000 * _SAMPLE_S)
                samples.append((1000 * time.time(), *host.ticks()))
            seen = []
            for page, first_s in pages:
                origin = page.evaluate("performance.timeOrigin")
                own = [(at - origin, *ticks) for at, *ticks in samples]
                seen.append(summary(**page.evaluate("probe"), first_s=first_s, samples=own))
            for page, _ in pages:  # Else the server keeps the places for those who come back.
                page.click("#hangup")
                page.wait_for_selector("body:not([data-state=live])")
            return seen
