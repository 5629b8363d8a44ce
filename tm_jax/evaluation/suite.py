"""Runs all measures over scenes and arms: the body of `launch/evaluate.py`.

The result has the same keys for every arm. Where an arm cannot have a number (a teacher is
not streamed for an hour), it is None.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from absl import logging
import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.data.corpus import speech
from tm_jax.evaluation import arms as arms_lib
from tm_jax.evaluation import diversity
from tm_jax.evaluation import endurance
from tm_jax.evaluation import frechet
from tm_jax.evaluation import gestures
from tm_jax.evaluation import measures
from tm_jax.evaluation import scenes
from tm_jax.evaluation import seams

# What every arm is compared in, and what `quality.json` has at its top level.
KEYS = (
    "lipsync_correlation", "lipsync_lag_frames", "bilabial_closure", "silence_ratio",
    "frechet_ratio", "drift", "seam_ratio",
)
TRUTH, TEACHER = "truth", "teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How much is measured.

    Attributes:
      size: Side of the pictures in pixels.
      timing: Clocks of the preset.
      clips: Clips with human voices.
      synthetic_clips: Clips with a synthetic voice.
      silent_clips: Of the first clips, how many are also silent.
      seconds: Length of a clip.
      diverse_clips: Of the first clips, how many are made with several seeds.
      seeds: Seeds of each of them.
      long_seconds: Length of the long stream; 0 for none.
      window_s: Seconds at its beginning and end that are compared.
      runs: Other runs that show how much such a window varies.
      long_arms: Names of the arms that stream for long; those that cannot are passed over.
      seed: Seed of scenes and noise.
    """

    size: int
    timing: timing_lib.Timing = timing_lib.Timing()
    clips: int = 24
    synthetic_clips: int = 4
    silent_clips: int = 8
    seconds: float = 8.0
    diverse_clips: int = 3
    seeds: int = 3
    long_seconds: float = 300.0
    window_s: float = 60.0
    runs: int = 6
    long_arms: tuple[str, ...] = ("student",)
    seed: int = 0

    def __post_init__(self):
        if self.clips < 1 or self.seconds < 2:
            raise ValueError(
                f"clips must be 1 and seconds 2 or more, got {self.clips} and {self.seconds}."
            )
        if self.long_seconds and self.long_seconds < 2 * self.window_s:
            raise ValueError(
                f"long_seconds must be 0 or at least twice window_s={self.window_s}, got "
                f"{self.long_seconds}."
            )
        if self.diverse_clips and self.seeds < 2:
            raise ValueError(f"seeds must be 2 or more, got {self.seeds}.")

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return round(self.seconds * self.timing.fps)


class _Record:
    """What is kept of one arm's clips."""

    def __init__(self):
        self.rows, self.change, self.features = [], [], []
        self.shifts, self.lids, self.rest_shifts, self.rest_lids = [], [], [], []
        self.looks, self.quiet, self.diversity = [], [], []

    def see(self, scene: scenes.Scene, clip: arms_lib.Clip) -> dict:
        """Measures a speaking clip; returns what its lips do."""
        row = measures.lips(scene, clip.frames)
        self.rows.append(row)
        self.change.append(seams.changes(clip.frames))
        shifts, shut = motion_of(scene, clip.frames)
        self.features.append(
            frechet.features(clip.frames, scene.picture, scene.face_box, shifts)
        )
        self.shifts.append(shifts)
        self.lids.append(shut)
        every = clip.frames[:: max(1, len(clip.frames) // 16)]
        found = measures.looks(scene, every)
        self.looks.append({k: float(v.mean()) for k, v in found.items()})
        return row

    def rest(self, scene: scenes.Scene, made: dict[str, arms_lib.Clip], speaking: dict) -> None:
        """Measures clips without an own voice."""
        self.quiet.append({k: measures.quiet(scene, clip, speaking) for k, clip in made.items()})
        shifts, shut = motion_of(scene, made[measures.SILENT[0]].frames)
        self.rest_shifts.append(shifts)
        self.rest_lids.append(shut)

    def compare(self, scene: scenes.Scene, videos: list[np.ndarray]) -> None:
        """Measures videos of several seeds."""
        shifts = [motion_of(scene, video)[0] for video in videos]
        openings = [measures.opened(scene, video) for video in videos]
        self.diversity.append(diversity.measure(videos, shifts, openings))


def motion_of(scene: scenes.Scene, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the head [T, 2] and lids [T] of a clip."""
    shifts = gestures.head(frames, scene.picture, measures.upper_face(scene))
    shut = gestures.lids(frames, shifts, scene.picture, scene.shut_eyes, scene.eye_box)
    return shifts, shut


def run(
    arms: dict[str, Any], speakers: list[speech.Speaker], config: Config,
    visit: Callable[[scenes.Scene, dict[str, np.ndarray]], None] | None = None,
) -> dict:
    """Measures all arms on the same scenes.

    Args:
      arms: Arms by name (`arms.py`). `truth` and `teacher` have a meaning: the first is what
        Fréchet distances and gestures are measured against, ratios are to the second.
      speakers: Held-out voices.
      config: How much is measured.
      visit: Called with every scene and the videos of all arms.

    Returns:
      `arms` by name, each with `KEYS` and details; `groups` by voice and style; `clips`.

    Raises:
      ValueError: No human voice among the speakers, or no arm `truth`.
    """
    human = [s for s in speakers if not scenes.is_synthetic(s)]
    machine = [s for s in speakers if scenes.is_synthetic(s)]
    if not human or TRUTH not in arms:
        raise ValueError("arms must hold truth, and speakers a held-out human voice.")
    plan = [(human, i) for i in range(config.clips)]
    plan += [(machine, config.clips + i) for i in range(config.synthetic_clips) if machine]
    records = {name: _Record() for name in arms}
    again, clips = _Record(), []
    overheard = scenes.make(
        human, len(plan) + 4, config.frames, config.size, seed=config.seed
    ).track.audio
    for voices, index in plan:
        scene = scenes.make(voices, index, config.frames, config.size, seed=config.seed)
        row = _one(arms, records, scene, config, overheard, visit)
        again.see(scene, arms[TRUTH].speak(scene, 1))
        overheard = scene.track.audio
        clips.append({
            "scene": index, "speaker": scene.speaker, "synthetic": scene.synthetic,
            "style": scene.style, **row,
        })  # fmt: skip
        told = ", ".join(f"{k} {v['correlation']:.2f}" for k, v in row.items())
        logging.info("Clip %d of %d, %s: %s.", len(clips), len(plan), scene.speaker, told)
    groups = measures.summarise(clips, arms)
    result = {"arms": _summaries(records, again, groups, config), "groups": groups}
    _long(result["arms"], arms, human, config)
    return result | {"clips": clips}


def _one(arms, records, scene, config, overheard, visit) -> dict:
    """All arms on one scene; returns what the lips of each do."""
    videos, row = {}, {}
    for name, arm in arms.items():
        clip = arm.speak(scene, config.seed)
        videos[name] = clip.frames
        row[name] = records[name].see(scene, clip)
        if scene.index < config.silent_clips:
            sounds = measures.silent_sounds(scene, overheard)
            made = {k: arm.rest(scene, *sounds[k], config.seed) for k in measures.SILENT}
            records[name].rest(scene, made, row[name])
        if scene.index < config.diverse_clips:
            others = [
                arm.speak(scene, config.seed + i).frames for i in range(1, config.seeds)
            ]
            records[name].compare(scene, [clip.frames, *others])
    if visit:
        visit(scene, videos)
    return row


def _summaries(records: dict, again: _Record, groups: dict, config: Config) -> dict:
    """The numbers of every arm but those of long streams."""
    truth = np.concatenate(records[TRUTH].features)
    space = frechet.space(truth)
    points = {name: space(np.concatenate(r.features)) for name, r in records.items()}
    floor = frechet.distance(space(np.concatenate(again.features)), points[TRUTH])
    apart = {name: frechet.distance(p, points[TRUTH]) for name, p in points.items()}
    teacher = apart.get(TEACHER)
    seam = measures.pooled_seams({k: r.change for k, r in records.items()}, config.timing)
    result = {}
    for name, record in records.items():
        lips, quiet = groups["human"][name], _quiet(record.quiet)
        result[name] = {
            "lipsync_correlation": lips["correlation"],
            "lipsync_lag_frames": lips["lag_frames"],
            "bilabial_closure": lips["closures_kept"],
            "silence_ratio": _worst(quiet),
            "frechet_ratio": apart[name] / teacher if teacher else None,
            "drift": None,
            "seam_ratio": seam[name]["chunk"]["median"],
            "lips": lips, "silence": quiet, "seams": seam[name],
            # A still floor: the same people saying the same another time.
            "frechet": {"distance": apart[name], "truth_again": floor, "windows": len(truth)},
            "looks": measures.medians(record.looks),
            "gestures": _gestures(record, records[TRUTH], config),
            "diversity": _diversity(record, records[TRUTH]),
        }
    return result


def _quiet(rows: list[dict]) -> dict | None:
    """Medians over clips for every sound without an own voice."""
    if not rows:
        return None
    return {name: measures.medians([row[name] for row in rows]) for name in rows[0]}


def _worst(quiet: dict | None) -> float | None:
    return max(row["travel_ratio"] for row in quiet.values()) if quiet else None


def _gestures(record: _Record, truth: _Record, config: Config) -> dict:
    """Statistics of head and lids, speaking and listening, and the same relative to the truth."""
    fps, height = config.timing.fps, config.size
    found = {
        "speaking": (record.shifts, record.lids, truth.shifts, truth.lids),
        "listening": (record.rest_shifts, record.rest_lids, truth.rest_shifts, truth.rest_lids),
    }
    result = {}
    for name, (shifts, shut, true_shifts, true_shut) in found.items():
        if not shifts:
            continue
        own = gestures.summarise(shifts, shut, fps, height)
        true = gestures.summarise(true_shifts, true_shut, fps, height)
        result[name] = own._asdict() | {
            "to_truth": {k: _ratio(a, b) for (k, a), b in zip(own._asdict().items(), true)},
            "head_speed_distance": gestures.speed_distance(shifts, true_shifts, fps, height),
        }
    return result


def _ratio(value: float, truth: float) -> float | None:
    return float(value / truth) if truth and np.isfinite(value / truth) else None


def _diversity(record: _Record, truth: _Record) -> dict | None:
    """Means over scenes, and pixels and head relative to the truth's."""
    if not record.diversity:
        return None
    own, true = (
        {k: float(np.mean([d._asdict()[k] for d in r.diversity]))
         for k in diversity.Diversity._fields}
        for r in (record, truth)
    )  # fmt: skip
    return own | {"to_truth": {k: _ratio(own[k], true[k]) for k in ("pixels", "head")}}


def _long(summaries: dict, arms: dict, human: list, config: Config) -> None:
    """Adds long streams of the arms that stream."""
    if not config.long_seconds:
        return
    scene = scenes.make(
        human, 0, round(config.long_seconds * config.timing.fps), config.size, seed=config.seed
    )
    for name in config.long_arms:
        if isinstance(arms.get(name), arms_lib.Streamed):
            found = endurance.measure(
                arms[name], scene, config.timing, seed=config.seed, window_s=config.window_s,
                runs=config.runs, name=name,
            )
            summaries[name]["long"] = found
            summaries[name]["drift"] = endurance.largest_change(found)
