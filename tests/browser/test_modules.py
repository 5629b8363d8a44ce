"""The page's own arithmetic: messages, resampling, and the play-out buffer."""

import numpy as np
import pytest

from tm_jax.serving.transport import codec
from tm_jax.serving.transport import messages


@pytest.fixture
def run(server, visit):
    """`run(script, argument)`: the value of a function of the page's modules."""
    page = visit(server.url)

    def evaluate(module, body, argument=None):
        source = f"async (given) => {{ const m = await import('/page/js/{module}.js'); {body} }}"
        return page.evaluate(source, argument)

    return evaluate


def test_messages_are_those_of_the_server(run):
    rng = np.random.default_rng(0)
    pcm = rng.integers(-32768, 32767, 2 * 960).astype("<i2")
    jpegs = (b"first picture", b"the second one")
    message = codec.frames_to_bytes(messages.Frames(
        generation=3, frame=4_000_000_000, pts=96000, source=700, first=True, speaking=True,
        own_voice=True, pcm=pcm.tobytes(), jpegs=jpegs,
    ))  # fmt: skip
    frames = run("protocol", """
      const frames = m.unpackFrames(Uint8Array.from(given).buffer);
      return Promise.all(frames.map(async (f) => ({ ...f, pcm: [...f.pcm], picture: await f.picture.text() })));
    """, list(message))  # fmt: skip
    assert [f["number"] for f in frames] == [4_000_000_000, 4_000_000_001]
    assert [f["pts"] for f in frames] == pytest.approx([4.0, 4.04])
    assert [f["source"] for f in frames] == [700, 1660]
    assert [f["picture"].encode() for f in frames] == list(jpegs)
    assert sum((f["pcm"] for f in frames), []) == pcm.tolist()
    assert all(f["own"] and f["speaking"] and f["generation"] == 3 for f in frames)
    packed = run("protocol", "return [...new Uint8Array(m.packSound(Int16Array.from(given), 5, 2 ** 32 - 1, 1234.6))]", pcm[:480].tolist())
    sound = codec.sound_from_bytes(bytes(packed))
    assert (sound.sequence, sound.position, sound.captured_ms) == (5, 2**32 - 1, 1235)
    assert sound.pcm == pcm[:480].tobytes()


def test_damaged_messages_of_frames_are_refused(run):
    good = codec.frames_to_bytes(messages.Frames(
        generation=0, frame=0, pts=0, pcm=bytes(1920), jpegs=(b"picture",)
    ))
    broken = [good[:20], good[:-1], b"\0" + good[1:], good[:20] + b"\x09" + good[21:]]
    refused = run("protocol", """
      return given.map((bytes) => {
        try { m.unpackFrames(Uint8Array.from(bytes).buffer); return false; }
        catch (error) { return error instanceof RangeError; }
      });
    """, [list(b) for b in broken])  # fmt: skip
    assert refused == [True] * len(broken)


def test_waiting_times_and_close_codes_are_those_of_the_protocol(run):
    waits = run("protocol", "return [0, 1, 2, 3, 4, 20].map((n) => [m.backoff(n, () => 0), m.backoff(n, () => 1)])")
    assert waits == [pytest.approx([0.8 * s, 1.2 * s]) for s in (0.5, 1, 2, 4, 5, 5)]
    ends = run("protocol", "return given.map(m.endOf)", [1000, 4000, 4001, 4002, 4003, 4009, 1001, 1006, 1009, 1011, 4008, 4012])
    assert all(ends[:6]) and not any(ends[6:])


@pytest.mark.parametrize("rate", [48000, 44100, 16000, 24000])
def test_resampling_keeps_voices_and_folds_nothing_back(run, rate):
    """Against the same sine at the new rate, in pieces of the worklet's size."""
    seconds, kept_hz = 0.3, 1000
    measured = run("resampler", """
      const [rate, seconds, tones] = given;
      return tones.map((hz) => {
        const input = Float32Array.from({ length: rate * seconds }, (_, n) => Math.sin(2 * Math.PI * hz * n / rate));
        const one = new m.Resampler(rate, 24000);
        const pieces = new m.Resampler(rate, 24000);
        const joined = [];
        for (let at = 0; at < input.length; at += 128) joined.push(...pieces.push(input.subarray(at, at + 128)));
        return [[...one.push(input)], joined];
      });
    """, [rate, seconds, [kept_hz, 15000]])  # fmt: skip
    (whole, joined), (high, _) = measured
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-6)
    n = np.arange(len(whole))
    truth = np.sin(2 * np.pi * kept_hz * n / 24000)
    inside = slice(200, len(whole) - 200)
    assert np.abs(np.array(whole) - truth)[inside].max() < 2e-3  # -54 dB
    if rate > 30000:  # 15 kHz cannot exist at 24 kHz; unfiltered it would return as 9 kHz
        assert np.abs(np.array(high))[inside].max() < 0.02


_PLAY = """
  const timeline = new m.Timeline();
  return given.map(([pts, now, quiet]) => timeline.place(pts, 0.04, now, quiet));
"""


def test_the_buffer_starts_between_100_and_150_ms_and_keeps_its_pace(run):
    """Pieces that arrive in time are played one after the other, whatever their jitter."""
    rng = np.random.default_rng(1)
    pieces = [[0.04 * i, 5 + 0.04 * i + rng.uniform(0, 0.08), False] for i in range(200)]
    places = run("timeline", _PLAY, pieces)
    at = np.array([p["at"] for p in places])
    assert 0.1 <= at[0] - pieces[0][1] <= 0.15
    np.testing.assert_allclose(np.diff(at), 0.04, rtol=0, atol=1e-9)
    assert not any(p["late"] for p in places)
    assert all(p["at"] > now for p, (_, now, _) in zip(places, pieces))


def test_the_buffer_grows_after_an_underrun(run):
    """A stall of 300 ms delays the stream once; the same stall again does not."""
    stalls = {100: 0.3, 150: 0.3}
    pieces = [[0.04 * i, 5 + 0.04 * i + stalls.get(i, 0), False] for i in range(250)]
    places = run("timeline", _PLAY, pieces)
    late = [i for i, p in enumerate(places) if p["late"]]
    assert late == [100]
    before, after = (places[i]["at"] - pieces[i][1] for i in (99, 101))
    assert after - before > 0.25


def test_the_buffer_gives_time_back_in_silence_only(run):
    def buffers(quiet):
        pieces = [[0.04 * i, 5 + 0.04 * i + (0.3 if i == 20 else 0), quiet] for i in range(600)]
        places = run("timeline", _PLAY, pieces)
        played = sum(p["play"] for p in places[21:])
        return places[-1]["at"] - pieces[-1][1], played

    loud, played_loud = buffers(False)
    silent, played_silent = buffers(True)
    assert played_loud == pytest.approx(0.04 * 579)
    assert silent < loud - 0.2 and silent > 0.05
    # Pieces follow each other without gap or overlap: what is saved was not played.
    assert played_loud - played_silent == pytest.approx(loud - silent, abs=0.1)


def test_a_jump_of_the_sender_is_followed_at_once(run):
    pieces = [[0.04 * i + (100 if i >= 50 else 0), 5 + 0.04 * i, False] for i in range(100)]
    places = run("timeline", _PLAY, pieces)
    assert places[50]["at"] - pieces[50][1] == pytest.approx(0.17, abs=0.05)


def test_pictures_wait_as_long_as_the_sound(run):
    """Sound waits for 70, then 310, then 90 ms, and pictures as long as they are told."""
    told = run("peer", """
      const seen = [];
      let waiting = 100;
      for (const sound of given) {
        for (let second = 0; second < 8; second++)
          waiting = m.pictureBuffer(waiting, (waiting - sound) / 1000);
        seen.push(waiting - sound);
      }
      return seen;
    """, [70, 310, 90])
    assert told == pytest.approx([15, 15, 15], abs=2)
    assert run("peer", "return given.map((offset) => m.pictureBuffer(100, offset))", [1.9, -1.9]) == [60, 400]


def test_estimates_of_clocks_that_are_not_known_yet_count_for_nothing(run):
    given = [[None, 5e12], [5e12, None], [4004407254459, 1], [5e12 + 1900, 5e12], [5e12, 5e12 + 70]]
    offsets = run("peer", """
      const report = (ms) => (ms === null ? {} : { estimatedPlayoutTimestamp: ms });
      return [m.playoutOffset(), ...given.map((pair) => m.playoutOffset(...pair.map(report)))];
    """, given)
    assert offsets == [None, None, None, None, 1.9, -0.07]


# A queue whose clock stands still until it is told; `look(s)` waits for the browser's next look.
_QUEUE = """
  const looks = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const shown = [], closed = [];
  let now = 0;
  const picture = (name) => ({ name, close: () => closed.push(name) });
  const queue = new m.Queue({ show: ({ name }) => shown.push(name) }, {
    most: 4, now: () => now, onDrawn: () => {},
  });
  const add = (name, at) => queue.add({ at, duration: 0.04, picture: picture(name) });
  const look = async (s) => { now = s; await looks(); };
"""


def test_pictures_that_are_due_at_once_are_drawn_one_after_the_other(run):
    shown, counts = run("queue", _QUEUE + """
      for (let i = 0; i < 4; i++) add(i, 1 + 0.04 * i);
      await look(0.9);
      const early = shown.length;
      await look(1.045);  // 0 is not yet late by a duration, 1 is due: both are drawn.
      await looks();
      const both = [...shown];
      await look(1.2);  // All are late: the newest is drawn, the other left out.
      queue.close();
      return [[early, both, shown, closed.sort()], queue.counts];
    """)  # fmt: skip
    assert shown == [0, [1], [1, 3], [0, 1, 2, 3]]
    assert counts == {"drawn": 2, "late": 1, "dropped": 2}


def test_waiting_pictures_are_few_and_all_given_back(run):
    shown, closed, dropped = run("queue", _QUEUE + """
      for (let i = 0; i < 6; i++) add(i, 1 + 0.04 * i);
      queue.cut(1.19);
      const late = { at: 1.1, duration: 0.04, picture: null };
      queue.add(late);
      queue.close();
      queue.ready(late, picture("late"));
      return [shown, closed, queue.counts.dropped];
    """)  # fmt: skip
    assert (shown, closed, dropped) == ([], [0, 1, 5, 2, 3, 4, "late"], 2)


# A player of tracks that has seen frames, each so many seconds early.
_TRACKS = """
  const player = new m.TrackPlayer({ show() {} }, { onDrawn() {}, onBlocked() {} });
  Object.defineProperty(player.audio, "outputLatency", { value: 0.03 });  // Else it changes.
  const early = (values) => { player.base = 0; player.slacks = values; };
  const end = (value) => { player.close(); return value; };
"""


def test_frames_are_drawn_with_their_sound(run):
    """The browser hands frames out 90 ms before the sound: at once in place, then slowly kept."""
    seen = run("track-player", _TRACKS + """
      early(Array(75).fill(0.2));
      const seen = [player.behind(-0.09)];
      for (let second = 0; second < 2; second++) {
        player.keepStep(player.behind(-0.09));
        seen.push(player.behind(-0.09));
      }
      player.keepStep(player.behind(0.01));  // Its estimate moves by 100 ms.
      return end([...seen, player.behind(0.01), player.held]);
    """)
    first, *kept, moved, held = seen
    assert first == pytest.approx(0.2 - 0.09 - held - 0.03)
    assert kept == pytest.approx([0, 0], abs=1e-9)
    assert moved == pytest.approx(0.07)


def test_sound_is_held_back_for_frames_that_come_late(run):
    held = run("track-player", _TRACKS + """
      const held = [player.held];
      const after = (values, seconds) => {
        for (let second = 0; second < seconds; second++) { early(values); player.keepStep(0); }
        held.push(player.held);
      };
      const some = Array(72).fill(0.05);
      after([...some, 0, 0, 0.05], 5);  // A few late ones are no reason.
      after([...some, 0, 0, 0], 1);
      after([...some, 0, 0, 0], 20);
      after(Array(74).fill(0.2), 5);  // Too few to tell.
      after(Array(75).fill(0.2), 4);
      after(Array(75).fill(0.2), 100);
      return end(held);
    """)
    first = held[0]
    assert held == pytest.approx([first, first, first + 0.04, 0.4, 0.4, 0.38, first])


def test_an_interrupt_is_silent_at_once_whatever_is_held_back(run):
    """Silent until what was under way has passed; a muted player stays so."""
    seen = run("track-player", _TRACKS + """
      const level = () => Math.round(1000 * player.gain.gain.value) / 1000;
      const until = async (wanted) => {
        while (level() !== wanted) await new Promise((done) => setTimeout(done, 5));
        return player.audio.currentTime;
      };
      if (!await player.resume()) throw new Error("no sound");
      player.held = 1.3;
      const began = player.audio.currentTime;
      player.flush();
      const silent = await until(0) - began;
      const heard = await until(1) - began;
      player.muted = true;
      player.flush();
      const end_s = player.audio.currentTime + player.held + 0.3;
      while (player.audio.currentTime < end_s) await new Promise((done) => setTimeout(done, 20));
      return end([silent, heard, level()]);
    """)
    silent, heard, muted = seen
    assert silent < 1 and heard > 1.49 and muted == 0


def test_a_track_is_drawn_in_order_and_given_back(run):
    """Frames of a real track, 25 a second, reach the screen."""
    drawn, state = run("track-player", """
      const track = new MediaStreamTrackGenerator({ kind: "video" });
      const writer = track.writable.getWriter();
      const drawn = [];
      const player = new m.TrackPlayer(
        { show: (frame) => drawn.push(frame.timestamp) }, { onDrawn() {}, onBlocked() {} },
      );
      const ended = player.see(track);
      for (let i = 0; i < 30; i++) {
        writer.write(new VideoFrame(new Uint8Array(64), {
          format: "RGBA", codedWidth: 4, codedHeight: 4, timestamp: 40000 * i,
        }));
        await new Promise((done) => setTimeout(done, 40));
      }
      await new Promise((done) => setTimeout(done, 300));
      player.close();
      await ended;
      return [drawn, player.audio.state];
    """)
    assert drawn == sorted(set(drawn)) and len(drawn) > 10 and drawn[0] == 0
    assert state == "closed"
