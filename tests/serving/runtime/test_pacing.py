"""Queues and rates on a clock of the test's own."""

import numpy as np
import pytest

from tm_jax.serving.calls import hearing
from tm_jax.serving.runtime import pacing
from tm_jax.serving.runtime import playout
from tm_jax.serving.transport import protocol

STEP, AFTER = 960, 240  # 40 ms and 10 ms.


def ramp(start, count):
    """Samples whose values tell where they come from; loud, so that cuts would be heard."""
    return np.arange(start, start + count, dtype=np.int16) + 1000


def queue(live, **arguments):
    return pacing.SoundQueue(STEP, AFTER, live=live, **arguments)


def test_an_utterance_comes_out_whole_and_its_end_is_not_waited_for():
    sound = queue(live=False)
    sound.push(ramp(0, 2500), 0.0, "a")
    sound.finish()
    chunks = [sound.take(0.01 * i, STEP * i) for i in range(4)]
    joined = np.concatenate([c.pcm for c in chunks])
    np.testing.assert_array_equal(joined[:2500], ramp(0, 2500))
    assert not joined[2500:].any() and len(sound) == 0
    np.testing.assert_array_equal(chunks[0].ahead, ramp(STEP, AFTER))
    assert [h[2:] for c in chunks for h in c.heard] == [("a", 0), ("a", 960), ("a", 1920)]
    assert chunks[3].complete_s is None and chunks[3].heard == ()


def test_speech_that_is_still_coming_starts_later_instead_of_tearing():
    sound = queue(live=False)
    sound.push(ramp(0, 500), 0.0, "a")  # 700 samples are lacking for chunk and look-ahead.
    first = sound.take(0.01, 0)
    assert not first.pcm[:700].any()
    np.testing.assert_array_equal(first.pcm[700:], ramp(0, 260))
    assert first.heard[0].pts == 700
    sound.push(ramp(500, 3000), 0.02, "a")
    second = sound.take(0.04, STEP)
    np.testing.assert_array_equal(second.pcm, ramp(260, STEP))


def test_a_source_that_stops_does_not_hold_its_last_words_back():
    sound = queue(live=True)
    sound.push(ramp(0, 300), 0.0)
    assert sound.take(0.5, 0).pcm[:300].any()
    assert len(sound) == 0


def _live(jitter, chunks, seed=0):
    """Runs a live queue with pieces of 20 ms that come up to `jitter` s late."""
    rng = np.random.default_rng(seed)
    sound, events = queue(live=True), []
    for piece in range(int(chunks * 2 + 4)):
        late = rng.uniform(0, jitter)
        events.append((piece * 0.02 + 0.02 + late, 1, piece))
    for chunk in range(chunks):
        events.append((0.075 + chunk * 0.04, 0, chunk))
    taken, pushed = [], 0
    for at_s, kind, index in sorted(events):
        if kind:
            sound.push(ramp(pushed % 30000, 480), at_s, source=pushed)
            pushed += 480
        else:
            taken.append(sound.take(at_s, STEP * index))
    return taken, sound


def test_a_live_queue_finds_the_delay_that_jitter_needs():
    taken, _ = _live(jitter=0.05, chunks=60)
    later = list(taken[25:])
    # Once the delay is found nothing is inserted or lost: positions follow each other.
    steps = np.diff([t.source for t in later])
    assert (steps == STEP).mean() > 0.95
    assert all(t.pcm.all() for t in later)


def test_delay_that_is_not_needed_any_more_is_given_back():
    sound = queue(live=True)
    at = 0
    sound.push(np.zeros(4800, np.int16), 0.0)  # A burst after a stall: 200 ms too much.
    for index in range(40):
        sound.push(np.zeros(STEP, np.int16), 0.04 * index)
        at += STEP
        sound.take(0.04 * index + 0.001, STEP * index)
    assert len(sound) <= AFTER + 0.07 * pacing.RATE


def test_a_live_queue_never_holds_more_than_a_second_and_a_bit():
    sound = queue(live=True)
    for _ in range(300):
        assert sound.push(ramp(0, 480), 0.0)
    assert len(sound) <= STEP + AFTER + pacing.RATE


def test_a_full_queue_refuses():
    sound = queue(live=False, most_s=1.0)
    assert sound.push(np.ones(24000, np.int16), 0.0)
    assert not sound.push(np.ones(1, np.int16), 0.0)


def test_spans_say_what_was_waited_for():
    sound = queue(live=True)
    for piece in range(3):
        sound.push(ramp(0, 480), 0.02 * (piece + 1), source=480 * piece)
    taken = sound.take(0.07, 0)
    assert taken.audio_wait_s == pytest.approx(0.02)
    assert taken.lookahead_s == pytest.approx(0.02)
    assert taken.complete_s == pytest.approx(0.06) and taken.source == 0


def test_the_transcript_knows_what_was_really_played():
    talk = pacing.Transcript()
    heard = (pacing.Heard(pts=960, samples=24000, item="a", offset=0),)
    talk.sent(10.0, 0, 24960, heard)
    talk.report(11.0, 960 + 2400)
    assert talk.current(11.0) == ("a", 100)
    assert talk.current(11.2) == ("a", 300)  # The client plays on between its reports.
    assert talk.current(99.0) == ("a", 1000)  # But not beyond what was sent.
    assert talk.end_of("a") == talk.end() == 24960
    talk.forget()
    assert talk.current(11.0) == (None, 0)


def test_a_slow_client_gets_the_newest_chunk():
    box = pacing.Outbox(most_frames=6)
    for index in range(8):
        box.push_frame(0, index % 3 == 0, bytes([index]))
    box.push_text("first")
    left = []
    while (entry := box.pop()) is not None:
        left.append(entry[0])
    assert left == ["first", b"\x06", b"\x07"] and box.dropped == 6


def test_too_much_text_gives_a_client_up():
    box = pacing.Outbox(most_texts=2)
    for _ in range(3):
        box.push_text("x")
    assert box.overflowed and len(box) == 2


def test_a_bucket_lets_through_its_rate():
    now = [0.0]
    bucket = pacing.Bucket(2.0, 3.0, lambda: now[0])
    assert [bucket.take(1) for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert bucket.take(1) and not bucket.take(1)
    now[0] = 100.0
    assert not bucket.take(3.5) and bucket.take(3)


def test_percentiles_of_a_window():
    window = pacing.Window(100)
    assert window.percentiles() == {"p50": 0, "p95": 0, "p99": 0}
    for value in range(1000):
        window.add(value)
    assert window.percentiles()["p50"] == pytest.approx(949.5)
    latencies = pacing.Latencies(8)
    latencies.add({"score": 10.0})
    assert latencies.percentiles() == {"score": {"p50": 10.0, "p95": 10.0, "p99": 10.0}}
    with pytest.raises(KeyError):
        latencies.add({"unknown": 1.0})


def test_hearing_in_chunks_equals_hearing_at_once():
    """A tone of 440 Hz at 24 kHz becomes the same tone at 16 kHz, without seams."""
    t = np.arange(24000) / 24000
    tone = np.round(8000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)
    ears = hearing.Hearing(before=500, after=160)
    step, ahead = 2400, hearing.ahead_samples(160)
    assert ahead == 240
    heard, windows = [], []
    for start in range(0, 24000 - step, step):
        window = ears.window(tone[start : start + step], tone[start + step :][:ahead])
        assert window.shape == (500 + 1600 + 160,) and window.dtype == np.float32
        windows.append(window)
        heard.append(window[500:2100])
    actual = np.concatenate(heard)[200:]
    expected = 8000 / 32768 * np.sin(2 * np.pi * 440 * np.arange(len(actual) + 200) / 16000)
    np.testing.assert_allclose(actual, expected[200:], atol=2e-3)  # Measured 6e-4.
    np.testing.assert_array_equal(windows[1][:500], windows[0][1600:2100])


def item(generation, frame, level):
    return playout.Item(generation, frame, np.zeros((2, 2, 3), np.uint8), np.full(960, level, np.int16))


def test_play_out_holds_when_dry_and_goes_on():
    player = playout.Playout()
    assert player.tick() is None and player.held == 0  # Nothing was shown yet.
    player.push([item(0, i, 500) for i in range(3)])
    assert [player.tick().frame for _ in range(3)] == [0, 1, 2]
    assert player.tick() is None and player.held == 1
    player.push([item(0, 3, 500)])
    assert player.tick().frame == 3


def test_an_interruption_silences_what_waits_until_the_new_generation():
    player = playout.Playout()
    player.push([item(0, i, 500) for i in range(6)])
    player.tick()
    player.flush(1)
    held = player.tick()
    assert held.frame == 1 and not held.pcm.any()  # The picture goes on, in silence.
    player.push([item(1, 6, 500)])
    shown = player.tick()
    assert (shown.generation, shown.frame) == (1, 6) and shown.pcm.any()
    assert player.dropped == 4


def test_play_out_gives_delay_back_in_silence_only():
    player = playout.Playout()
    player.push([item(0, i, 0) for i in range(12)])
    player.push([item(0, 12 + i, 500) for i in range(12)])
    assert player.tick().frame == 11 and player.dropped == 11
    loud = playout.Playout()
    loud.push([item(0, i, 500) for i in range(12)])
    loud.push([item(0, 12 + i, 500) for i in range(12)])
    assert loud.tick().frame == 0 and loud.dropped == 0


def _play(player, chunks, level=0, length=12):
    """Pushes chunks, each when `length` ticks are over; returns what was left over before each."""
    left = []
    for _ in range(chunks):
        left.append(len(player._items))
        player.push([item(0, 0, level) for _ in range(length)])
        for _ in range(length):
            player.tick()
    return left


@pytest.mark.parametrize("level, kept", [(0, 1), (500, 4)])
def test_play_out_gives_back_what_no_recent_chunk_needed(level, kept):
    player = playout.Playout()
    player.push([item(0, 0, level) for _ in range(4)])  # Delay from the start.
    left = _play(player, 20, level)
    assert left[:7] == [4] * 7 and left[-1] == kept
    assert player.dropped == 4 - kept and player.held == 0


def test_play_out_keeps_more_after_it_ran_dry_and_forgets_that():
    player = playout.Playout()
    _play(player, 10)
    assert player.tick() is None and player.tick() is None  # The next chunk is late,
    player.push([item(0, 0, 0) for _ in range(4)])  # and others are early.
    assert _play(player, 20)[-1] == 2
    assert _play(player, 150)[-1] == 1
    assert player.held == 2


def test_packets_of_sound_have_no_seams_and_wait_for_nothing():
    t = np.arange(9600) / 24000
    tone = np.round(8000 * np.sin(2 * np.pi * 300 * t)).astype(np.int16)
    packets = playout.Packets(24000, 48000, 960)
    parts = [packets.push(tone[i : i + 960]) for i in range(0, 9600, 960)]
    assert [[part.samples for part in some] for some in parts] == [[960, 960]] * 10
    out = np.concatenate([part.to_ndarray()[0] for some in parts for part in some])
    n = np.arange(len(out)) / 48000 - 32 / 24000  # 32 samples late.
    expected = 8000 * np.sin(2 * np.pi * 300 * n)
    np.testing.assert_allclose(out[200:], expected[200:], atol=3)  # Measured 0.9.


def test_no_source_is_not_a_position():
    sound = queue(live=True)
    sound.push(ramp(0, 1500), 0.0)
    assert sound.take(0.0, 0).source == protocol.NO_SOURCE
