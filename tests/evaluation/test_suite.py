"""The whole evaluation on arms whose faults are known: late, blurred, still, none."""

import json

import numpy as np
import pytest
import scipy.ndimage

from tm_jax.data.corpus import speech
from tm_jax.evaluation import arms
from tm_jax.evaluation import facts
from tm_jax.evaluation import gestures
from tm_jax.evaluation import scenes
from tm_jax.evaluation import suite
from tm_jax.evaluation import tables

_SIZE = 128


class _Changed(arms.Drawn):
    """The truth with a fault."""

    def __init__(self, change):
        super().__init__(lambda picture, frames: change(frames))


def _late(frames):
    return np.concatenate([np.repeat(frames[:1], 3, 0), frames[:-3]])


def _blurred(frames):
    return scipy.ndimage.gaussian_filter(frames, (0, 1.2, 1.2, 0))


class _Restless(arms.Drawn):
    """Goes on talking when it should be quiet."""

    def rest(self, scene, sound, mode="auto", seed=0):
        return self.speak(scene, seed)


def _speaker(name: str, seed: int) -> speech.Speaker:
    """A voice of noise that says vowels between closures and pauses."""
    rng = np.random.default_rng(seed)
    names, ends = [], [0.0]
    for _ in range(14):
        for phone in (rng.choice(["AA", "EH", "OW", "AE"]), rng.choice(["M", "B", "P", "D", "L"])):
            names.append(speech.PHONE_ID[phone])
            ends.append(ends[-1] + rng.uniform(0.09, 0.2))
    ends = np.array(ends)
    count = int(ends[-1] * speech.SAMPLE_RATE)
    return speech.Speaker(
        name=name, language="en", split="held_out",
        audio=(3000 * rng.standard_normal(count)).astype(np.int16),
        bounds=np.array([[0, count]]), phone_start=ends[:-1].astype(np.float32),
        phone_end=ends[1:].astype(np.float32), phone_id=np.array(names, np.int16),
        phone_range=np.array([[0, len(names)]]),
    )


@pytest.fixture(scope="module")
def results():
    seen = []
    made = {
        "student": _Changed(_late), "teacher": _Changed(_blurred), "restless": _Restless(),
        "truth": arms.Drawn(), "static": arms.Static(),
    }
    config = suite.Config(
        size=_SIZE, clips=2, synthetic_clips=1, silent_clips=1, diverse_clips=1, seeds=2,
        seconds=4, long_seconds=0,
    )
    speakers = [_speaker("testdata_a", 0), _speaker("testdata_b", 1), _speaker("flite_awb", 2)]
    found = suite.run(made, speakers, config, lambda scene, videos: seen.append((scene, videos)))
    return found, seen


def test_every_arm_has_every_key(results):
    found, seen = results
    assert len(seen) == len(found["clips"]) == 3
    assert [c["synthetic"] for c in found["clips"]] == [False] * 2 + [True]
    for arm in found["arms"].values():
        assert set(suite.KEYS) <= set(arm)
        assert arm["drift"] is None  # Nothing streamed for long.


def test_truth_is_in_step_and_a_late_picture_is_late(results):
    made = results[0]["arms"]
    assert made["truth"]["lipsync_correlation"] > 0.95
    assert made["truth"]["lipsync_lag_frames"] == 0
    assert made["truth"]["bilabial_closure"] > 0.9
    assert made["student"]["lipsync_lag_frames"] == 3
    assert made["student"]["lipsync_correlation"] < 0.7
    assert made["teacher"]["lipsync_correlation"] > 0.85  # Measured 0.90: blur hides little.


def test_a_still_picture_says_nothing(results):
    still = results[0]["arms"]["static"]
    assert still["lipsync_correlation"] == still["bilabial_closure"] == 0
    assert still["silence_ratio"] == 0
    assert still["seam_ratio"] == 1
    assert still["looks"]["sharpness"] == pytest.approx(1)
    assert still["gestures"]["speaking"]["head_speed"] < 1e-6
    assert still["diversity"]["pixels"] == 0


def test_talking_in_silence_is_seen(results):
    made = results[0]["arms"]
    assert made["truth"]["silence_ratio"] < 0.05
    assert made["restless"]["silence_ratio"] == pytest.approx(1, abs=0.01)


def test_distances_and_ratios(results):
    made = results[0]["arms"]
    apart = {name: arm["frechet"]["distance"] for name, arm in made.items()}
    assert apart["truth"] == pytest.approx(0, abs=1e-6)
    assert made["teacher"]["frechet_ratio"] == 1
    assert made["static"]["frechet_ratio"] == pytest.approx(apart["static"] / apart["teacher"])
    assert apart["static"] > apart["student"] and apart["teacher"] > apart["student"]
    assert made["teacher"]["looks"]["sharpness"] < 0.8 < made["truth"]["looks"]["sharpness"]


def test_gestures_and_diversity_against_the_truth(results):
    made = results[0]["arms"]
    ratios = made["student"]["gestures"]["speaking"]["to_truth"]
    assert ratios["head_spread"] == pytest.approx(1, abs=0.1)
    assert made["truth"]["gestures"]["speaking"]["head_speed_distance"] == 0
    assert made["static"]["gestures"]["speaking"]["head_speed_distance"] == pytest.approx(1)
    assert made["truth"]["diversity"]["to_truth"]["pixels"] == 1
    assert made["truth"]["diversity"]["lips"] > 0.9  # Other heads say the same.
    assert made["truth"]["diversity"]["head"] > 1


def test_lids_are_those_of_the_motion(results):
    """Against the curve that the renderer drew: as many blinks, within a frame."""
    scene, videos = results[1][0]
    _, shut = suite.motion_of(scene, videos["truth"])
    true = gestures.blinks(scene.motion[:, scenes._LIDS[0]])
    found = gestures.blinks(shut)
    assert len(found) == len(true) > 0
    assert np.abs(np.array(found)[:, 0] - np.array(true)[:, 0]).max() <= 1


def test_tables_and_json(results, tmp_path):
    found = facts.plain(facts.collect(None, clips=4) | results[0])
    facts.write(str(tmp_path / "quality.json"), found)
    text = tables.evaluation(json.loads((tmp_path / "quality.json").read_text()))
    assert "| student | " in text and "Fréchet" in text and "nan" not in text


def test_plots(results, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from tm_jax.evaluation import plots

    scene, videos = results[1][0]
    plots.lips(tmp_path / "lips.png", scene, videos)
    plots.arms(tmp_path / "arms.png", facts.plain(results[0]))
    assert not plots.endurance(tmp_path / "long.png", results[0])
    for name in ("lips", "arms"):
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("spread", [0.1, None])  # A single other run has no spread.
def test_a_plot_of_a_long_stream(tmp_path, spread):
    pytest.importorskip("matplotlib")
    from tm_jax.evaluation import plots

    looks = plots._LOOKS
    long = {
        "seconds": 60.0, "curves": {key: [1.0, 1.1, 0.9] for key in looks},
        "runs": {key: {"mean": 1.0, "spread": spread} for key in looks},
    }
    assert plots.endurance(tmp_path / "long.png", {"arms": {"student": {"long": long}}})
    assert (tmp_path / "long.png").stat().st_size > 1000


def test_settings_that_cannot_be_are_explained():
    with pytest.raises(ValueError, match="twice window_s"):
        suite.Config(size=64, long_seconds=60, window_s=60)
    with pytest.raises(ValueError, match="clips must be 1"):
        suite.Config(size=64, clips=0)
    with pytest.raises(ValueError, match="hold truth"):
        suite.run({}, [_speaker("testdata_a", 0)], suite.Config(size=64))
