"""Speech in, frames out: alignment, waiting, ends, interruptions, one real session."""

import asyncio
import threading

import numpy as np
import pytest

from tests import miniature
from tm_jax.inference import session as session_lib
from tm_jax.integrations import avatar as avatar_lib

_LOOKAHEAD_S = 0.2


def _run(session, work, rate=24000):
    async def run():
        avatar = avatar_lib.Avatar(session, _LOOKAHEAD_S, rate=rate)
        try:
            return await work(avatar)
        finally:
            await avatar.close()

    return asyncio.run(run())


async def _take(pieces, count):
    return [await anext(pieces) for _ in range(count)]


def _number(piece):
    return int(piece.frame[0, 0, 0])


def _level(piece):
    return int(piece.frame[0, 1, 0])


@pytest.mark.parametrize("rate", [16000, 24000, 48000])
def test_every_frame_moves_with_its_own_sound(fake, rate):
    # Each frame of sound has a level of its own.
    levels = np.linspace(0.1, 0.9, 30)
    speech = np.repeat(levels, rate // 25).astype(np.float32)

    async def work(avatar):
        await avatar.push(speech)
        avatar.end()
        return await _take(avatar.pieces(), 40)

    pieces = _run(fake, work, rate)
    assert [_number(p) for p in pieces] == list(range(40))
    for number, piece in enumerate(pieces):
        if number < 30:
            heard = piece.sound.astype(float) / 32767
            np.testing.assert_allclose(heard, levels[number], atol=1e-4)
            assert _level(piece) == pytest.approx(200 * levels[number], abs=1)
            assert piece.frame[1, 0, 0] == 1
        else:
            assert piece.sound is None
    assert [p.ended for p in pieces] == [int(n == 29) for n in range(40)]
    assert pieces[36].frame[1, 0, 0] == 0  # A whole chunk without speech: it listens.


def test_look_ahead_is_real_sound_where_it_is_known(fake):
    async def work(avatar):
        await avatar.push(np.full(24000, 0.5, np.float32))
        return await _take(avatar.pieces(), 12)

    assert _run(fake, work)[0].frame[1, 1, 0] == pytest.approx(100, abs=1)


def test_without_speech_it_listens_in_frames_without_sound(fake):
    async def work(avatar):
        return await _take(avatar.pieces(), 30)

    pieces = _run(fake, work)
    assert all(p.sound is None and not p.ended and not p.frame[1, 0, 0] for p in pieces)


def test_a_chunk_hears_the_newest_of_the_other_party(fake):
    async def work(avatar):
        pieces = avatar.pieces()
        await _take(pieces, 1)
        for level in np.linspace(0.1, 0.9, 10):  # A second: more than a chunk is long.
            avatar.hear(np.full(4800, level, np.float32), 48000)
        await _take(pieces, 24)

    _run(fake, work)
    heard = next(other for other in fake.others if other.any())
    assert len(heard) == 12 * 640
    # The last 0.48 s, apart from what the filter holds back.
    assert heard[100] == pytest.approx(0.55, abs=0.03)
    assert heard[-200] == pytest.approx(0.9, abs=0.03)
    assert fake.calls.count("push_other") < fake.calls.count("pull")  # Silence is not pushed.


def test_a_preset_that_hears_nobody_else_is_left_alone(fake):
    async def run():
        avatar = avatar_lib.Avatar(fake, _LOOKAHEAD_S, hears=False)
        avatar.hear(np.ones(16000, np.float32), 16000)
        await _take(avatar.pieces(), 13)
        await avatar.close()

    asyncio.run(run())
    assert "push_other" not in fake.calls


def test_a_beginning_waits_for_a_whole_chunk_but_only_for_one(fake):
    async def work(avatar):
        pieces = avatar.pieces()
        await avatar.push(np.full(2400, 0.5, np.float32))  # A tenth of a second, not the end.
        first = await _take(pieces, 12)
        second = await _take(pieces, 12)
        return first, second

    first, second = _run(fake, work)
    assert all(p.sound is None for p in first)
    assert second[0].sound is not None


def test_a_short_utterance_that_is_complete_does_not_wait(fake):
    async def work(avatar):
        await avatar.push(np.full(1000, 0.5, np.float32))
        avatar.end()
        return await _take(avatar.pieces(), 4)

    pieces = _run(fake, work)
    assert pieces[0].sound is not None and pieces[1].sound is not None
    assert [p.ended for p in pieces] == [0, 1, 0, 0] and pieces[2].sound is None


@pytest.mark.parametrize("piece", [160, 481, 4000])
def test_nothing_is_lost_when_speech_comes_bit_by_bit(fake, piece):
    rng = np.random.default_rng(0)
    speech = np.clip(0.2 * rng.standard_normal(60000), -1, 1).astype(np.float32)

    async def work(avatar):
        async def speak():
            for start in range(0, len(speech), piece):
                await avatar.push(speech[start : start + piece])
                await asyncio.sleep(0)
            avatar.end()

        task = asyncio.create_task(speak())
        sound = []
        async for taken in avatar.pieces():
            if taken.sound is not None:
                sound.append(taken.sound)
            if taken.ended:
                break
            await asyncio.sleep(0.0005)
        await task
        return np.concatenate(sound)

    heard = _run(fake, work)
    assert len(heard) >= len(speech)
    # Silence may be put in where speech came late, but all of it is there and in order.
    expected = np.rint(speech * 32767).astype(np.int16)
    position = 0
    for sample in heard:
        if position < len(expected) and sample == expected[position]:
            position += 1
    assert position == len(expected)


def test_two_utterances_end_one_after_the_other(fake):
    async def work(avatar):
        for _ in range(2):
            await avatar.push(np.full(9600, 0.5, np.float32))  # Ten frames.
            avatar.end()
        pieces = await _take(avatar.pieces(), 24)
        avatar.end()  # An empty one ends at once.
        pieces += await _take(avatar.pieces(), 1)
        return pieces

    ended = [n for n, p in enumerate(_run(fake, work)) if p.ended]
    assert ended == [9, 19, 24]


def test_an_interruption_stops_speech_with_the_next_piece(fake):
    async def work(avatar):
        await avatar.push(np.full(240000, 0.5, np.float32))
        avatar.end()
        pieces = avatar.pieces()
        before = await _take(pieces, 5)
        assert avatar.clear() == 1 and avatar.queued_s == 0
        after = await _take(pieces, 20)
        await avatar.push(np.full(24000, 0.25, np.float32))
        avatar.end()
        again = await _take(pieces, 40)
        return before, after, again

    before, after, again = _run(fake, work)
    assert all(p.sound is not None and p.generation == 0 for p in before)
    assert all(p.sound is None and p.generation == 1 for p in after)
    assert not any(p.ended for p in after)
    spoken = [p for p in again if p.sound is not None]
    assert len(spoken) == 25 and sum(p.ended for p in again) == 1
    np.testing.assert_allclose(np.concatenate([p.sound for p in spoken]), 8192, atol=1)


def test_pushing_waits_while_minutes_wait_and_an_interruption_frees_it(fake):
    async def work(avatar):
        minute = np.zeros(60 * 24000, np.float32)
        for _ in range(3):
            await avatar.push(minute)
        waiting = asyncio.create_task(avatar.push(minute))
        await asyncio.sleep(0.01)
        assert not waiting.done() and avatar.queued_s == 180
        avatar.clear()
        await asyncio.wait_for(waiting, 1)
        assert avatar.queued_s == 0  # What was interrupted is not spoken.

    _run(fake, work)


def test_the_session_is_called_in_one_thread_and_ahead_of_need(fake):
    began = []
    fake.wait = lambda: began.append(threading.get_ident())

    async def work(avatar):
        await avatar.warm_up()
        pieces = avatar.pieces()
        await _take(pieces, 1)
        made = len(began)
        await _take(pieces, 8)
        await asyncio.sleep(0.02)
        early = len(began)
        await _take(pieces, 3)
        await asyncio.sleep(0.02)
        return made, early, len(began)

    made, early, late = _run(fake, work)
    # Two to warm up, one to show; the next one when two frames are left.
    assert (made, early, late) == (3, 3, 4)
    assert len(fake.threads) == 1 and threading.get_ident() not in fake.threads
    assert fake.calls.count("reset") == 1 and fake.calls[-1] == "close"


def test_a_session_that_breaks_is_heard_of_and_a_closed_one_ends(make_fake):
    broken = make_fake(lookahead=9999)

    async def work(avatar):
        with pytest.raises(RuntimeError, match="lookahead_s is too small"):
            await _take(avatar.pieces(), 1)

    _run(broken, work)

    async def close(avatar):
        pieces = avatar.pieces()
        await _take(pieces, 1)
        await avatar.close()
        assert [p async for p in pieces] == []
        await avatar.push(np.zeros(100, np.float32))

    fine = make_fake()
    _run(fine, close)
    assert fine.calls.count("close") == 1
    with pytest.raises(ValueError, match="rate=16001 is not a multiple of 25"):
        avatar_lib.Avatar(fine, _LOOKAHEAD_S, rate=16001)


def test_a_real_session_shows_what_it_shows_without_the_avatar(pico):
    """Feeding chunk by chunk, with look-ahead pushed again, gives the very same frames."""
    pipeline = miniature.pipeline(pico)
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    speech = np.clip(0.3 * rng.standard_normal(3 * 7680), -1, 1).astype(np.float32)

    async def run():
        avatar = avatar_lib.Avatar.open(pipeline, picture, rate=16000)
        assert await avatar.warm_up() == (64, 64)
        await avatar.push(speech)
        avatar.end()
        pieces = await _take(avatar.pieces(), 36)
        await avatar.set_character(255 - picture)
        await avatar.close()
        return np.stack([p.frame for p in pieces])

    plain = session_lib.Session(pipeline, picture, mode="speak")
    plain.push_audio(speech)
    plain.end_audio()
    expected = np.concatenate([plain.pull().frames for _ in range(3)])
    np.testing.assert_array_equal(asyncio.run(run()), expected)
