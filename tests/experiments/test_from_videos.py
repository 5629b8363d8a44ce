"""The report of a run from videos: minutes of a log, losses of event files, a contact sheet."""

import numpy as np
import pytest
import tensorboardX

from experiments.from_videos import report
from tests.data import recordings


def test_minutes_of_a_log_that_was_interrupted_over_midnight():
    log = "23:50:00  teacher\n00:10:00  student\n00:12:30  teacher\n00:13:00  finished\n"
    assert report.minutes(log) == {"teacher": 20.5, "student": 2.5}


def test_losses_of_a_run_that_was_resumed(tmp_path):
    for first, last in ((0, 3), (2, 5)):  # The second one writes step 2 again.
        with tensorboardX.SummaryWriter(str(tmp_path), filename_suffix=f".{first}") as writer:
            for step in range(first, last):
                writer.add_scalar("loss", 10 * first + step, step)
    found = report.scalars(tmp_path)["loss"]
    assert [step for step, _ in found] == [0, 1, 2, 3, 4]
    assert found[1][1] == pytest.approx(1) and found[4][1] == pytest.approx(24)


def test_a_contact_sheet_has_frames_from_begin_to_end(tmp_path):
    frames = [np.full((64, 64, 3), 4 * i, np.uint8) for i in range(48)]
    recordings.write(tmp_path / "a.mp4", frames, recordings.clicks(1.9, [0.5]))
    report.sheet(tmp_path / "a.mp4", tmp_path / "a.png")
    image = report.iio.imread(tmp_path / "a.png")
    assert image.shape == (3 * 64, 8 * 64, 3)
    assert image[:64, :64].mean() < 8 and image[-64:, -64:].mean() > 170
