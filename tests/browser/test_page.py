"""The page in a real browser, against a server without a model (fake_server.py).

`measure.js` reads frame numbers back from the canvas and watches the sound that is scheduled,
so that nothing here rests on what the page says of itself.
"""

import re
import time
import wave

import numpy as np
from PIL import Image

_LIVE = "body[data-state=live]"
_IDLE = "body[data-state=idle]"
_LOST = "body[data-state=lost]"


def _choose(page, name, value):
    page.click(f"label:has(input[name={name}][value={value}])")


def _until(page, condition, timeout_ms=30000):
    """Waits inside the page; Playwright's own wait would need `unsafe-eval`."""
    page.evaluate(f"""
      new Promise((done, fail) => {{
        const end = performance.now() + {timeout_ms};
        const poll = () => {{
          if ({condition}) done();
          else if (performance.now() > end) fail(new Error("waited in vain"));
          else setTimeout(poll, 5);
        }};
        poll();
      }})""")


def _eventually(condition, timeout_s=10.0):
    """Waits for something outside the browser."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _call(page, mode="agent"):
    """Presses Call and waits for the first frame; returns the seconds it took."""
    page.wait_for_selector(".face img")
    _choose(page, "mode", mode)
    began = time.monotonic()
    page.click("#call")
    page.wait_for_selector(_LIVE)
    _until(page, "measured.shown.length > 0")
    return time.monotonic() - began


def _numbers(page):
    return page.evaluate("measured.shown.map(s => s.number)")


def test_frames_come_in_order_on_time_and_in_step_with_the_sound(server, visit, on_time):
    page = visit(server.url, width=900, height=600)
    first_s = _call(page)
    page.wait_for_timeout(6500)
    numbers = _numbers(page)
    assert numbers == sorted(set(numbers))
    expected = numbers[-1] - numbers[0] + 1
    offsets = np.abs(page.evaluate("measured.offsets()"))
    played = server.sent("played")[-1]
    assert 50 < played["playout_ms"] and played["frame"] >= numbers[0]
    with on_time():
        assert first_s < 1.5 and expected > 140
        assert len(numbers) > 0.97 * expected
        assert len(offsets) >= 4 and np.median(offsets) < 60
        assert played["late"] + played["dropped"] < 0.03 * expected
        assert played["playout_ms"] < 250


def test_the_microphone_arrives_whole_and_in_real_time(server, visit, on_time):
    page = visit(server.url)
    _call(page, "mirror")
    page.wait_for_timeout(2500)
    sound = server.sent("sound")
    positions = [m["position"] for m in sound]
    assert positions == list(np.cumsum([0, *(m["samples"] for m in sound[:-1])]))
    seconds = sound[-1]["at"] - sound[0]["at"]
    rate = sum(m["samples"] for m in sound[1:]) / seconds
    with on_time():
        assert 23000 < rate < 25000
    assert max(m["peak"] for m in sound) > 1000
    # The frames name the sample they move with; its age is measured on the way back.
    lags = [m["voice_to_lips_ms"] for m in server.sent("played") if "voice_to_lips_ms" in m]
    assert lags and lags[-1] > 100  # the server answers 100 ms old sound
    with on_time():
        assert lags[-1] < 400
    page.click("#mute")
    page.wait_for_timeout(700)
    before = len(server.sent("sound"))
    page.wait_for_timeout(300)
    silent = server.sent("sound")[before:]
    assert silent and max(m["peak"] for m in silent) == 0


def test_an_interrupt_is_silent_at_once_while_the_picture_goes_on(server, visit, on_time):
    page = visit(server.url)
    _call(page)
    page.evaluate("""() => new Promise((done) => {
      const levels = [];
      let began = 0;
      const note = () => {
        const level = measured.level();
        if (began) levels.push([performance.now() - began, level]);
        else if (level > 0.1) {
          document.getElementById("interrupt").click();
          began = performance.now();
          window.atPress = measured.shown.at(-1).number;
          levels.push([0, level]);
        }
        if (!began || performance.now() - began < 600) setTimeout(note, 4);
        else { window.levels = levels; done(); }
      };
      note();
    })""")
    before = page.evaluate("atPress")
    levels = np.array(page.evaluate("window.levels"))
    # 6 ms of fading, 11 ms that the meter looks back, and one block of the sound card.
    assert levels[levels[:, 0] > 250, 1].max() < 1e-3
    with on_time():
        assert levels[levels[:, 0] > 60, 1].max() < 1e-3
    assert levels[0, 1] > 0.1  # it did sound when the button was pressed
    numbers = _numbers(page)
    assert numbers == sorted(set(numbers)) and numbers[-1] > before + 5
    assert len(server.sent("interrupt")) == 1


def test_a_killed_server_is_found_again_with_the_uploaded_picture(server, visit, tmp_path):
    page = visit(server.url)
    page.wait_for_selector(".face img")
    Image.new("RGB", (300, 300), (180, 60, 200)).save(tmp_path / "own.png")
    page.set_input_files("#picture", tmp_path / "own.png")
    page.wait_for_selector(".face:has-text('Yours') input:checked", state="attached")
    _call(page)
    server.kill()
    page.wait_for_selector(_LOST)
    assert page.inner_text("#status-text") == "Reconnecting"
    assert "connects again" in page.inner_text("#banner")
    server.start()
    page.wait_for_selector(_LIVE)
    assert page.is_hidden("#banner")
    starts = [m["character"] for m in server.sent("start")]
    assert len(set(starts)) == 2  # the old picture was unknown, and was brought again
    page.evaluate("measured.shown.length = 0")
    _until(page, "measured.shown.length > 10")
    assert _numbers(page)[-1] < 200  # a new session
    # The violet of the picture, above the face of the others.
    colour = page.evaluate(
        "[...document.getElementById('video').getContext('2d').getImageData(300, 20, 1, 1).data]"
    )
    np.testing.assert_allclose(colour[:3], (180, 60, 200), atol=12)


def test_a_network_break_resumes_the_same_session(server, visit):
    page = visit(server.url)
    _call(page)
    _until(page, "measured.shown.length > 10")
    before = _numbers(page)[-1]
    server.control(drop=True)
    page.wait_for_selector(_LOST)
    page.wait_for_selector(_LIVE)
    _until(page, f"measured.shown.at(-1).number > {before + 10}")
    assert len(server.sent("start")) == 1
    assert server.sent("hello")[-1]["resume"]
    numbers = _numbers(page)
    assert numbers[-1] > before and numbers == sorted(set(numbers)), numbers


def test_hanging_up_gives_everything_back(server, visit):
    page = visit(server.url)
    for _ in range(2):
        _call(page, "mirror")
        page.click("#hangup")
        page.wait_for_selector(_IDLE)
        _until(page, "measured.contexts.every(c => c.state === 'closed')")
        tracks = page.evaluate("measured.streams.flatMap(s => s.getTracks().map(t => t.readyState))")
        assert tracks and set(tracks) == {"ended"}
        assert page.is_visible("#still") and page.is_hidden("#video")
        _eventually(lambda: server.json("/api/info")["sessions"] == 0)
    assert len(server.sent("stop")) == 2
    sound = len(server.sent("sound"))
    page.wait_for_timeout(300)
    assert len(server.sent("sound")) == sound


def test_a_refused_microphone_is_explained_and_a_file_still_plays(server, visit, voice_wav):
    page = visit(server.url, microphone=False)
    page.wait_for_selector(".face img")
    page.click("#call")
    page.wait_for_selector("#banner:visible")
    assert "microphone is blocked" in page.inner_text("#banner")
    assert page.get_attribute("body", "data-state") == "idle"
    assert not server.sent("start")
    page.click("#banner-action")
    page.click("#call")
    assert "Choose a sound file first" in page.inner_text("#sound-words")
    page.set_input_files("#sound", voice_wav)
    page.wait_for_selector("#sound-name:has-text('·')")
    page.click("#call")
    page.wait_for_selector(_LIVE)
    _until(page, "document.getElementById('sound-progress').value > 0.1")
    assert max(m["peak"] for m in server.sent("sound")) > 1000


def test_a_recording_is_sent_whole_and_its_end_is_told(server, visit, tmp_path):
    with wave.open(str(tmp_path / "short.wav"), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(np.full((16000, 2), 5000, "<i2").tobytes())
    page = visit(server.url)
    page.wait_for_selector(".face img")
    _choose(page, "mode", "file")
    page.set_input_files("#sound", tmp_path / "short.wav")
    page.wait_for_selector("#sound-name:has-text('·')")
    page.click("#call")
    page.wait_for_selector(_LIVE)
    _eventually(lambda: server.sent("speech_end"))
    assert abs(sum(m["samples"] for m in server.sent("sound")) - 24000) <= 24
    assert page.evaluate("measured.streams.length") == 0


_NO_SOUND = """
const resume = AudioContext.prototype.resume;
AudioContext.prototype.resume = function () {
  return window.clicked ? resume.call(this) : new Promise(() => this.suspend());
};
const Plain = window.AudioContext;
window.AudioContext = class extends Plain {
  constructor(...args) { super(...args); this.suspend(); }
};
"""


def test_blocked_sound_is_said_and_one_click_turns_it_on(server, visit):
    page = visit(server.url, init=_NO_SOUND)
    page.wait_for_selector(".face img")
    _choose(page, "mode", "file")
    _choose(page, "mode", "agent")
    page.click("#call")
    page.wait_for_selector(_LIVE)
    page.wait_for_selector("#banner:visible")
    assert "sound is off" in page.inner_text("#banner")
    _until(page, "measured.shown.length > 10")  # the picture moves meanwhile
    page.evaluate("window.clicked = true")
    page.click("#banner-action")
    _until(page, "measured.level() > 0.1")
    assert page.is_hidden("#banner")


def test_a_full_server_offers_to_try_again(server, visit):
    server.control(full=True)
    page = visit(server.url)
    page.wait_for_selector(".face img")
    page.click("#call")
    page.wait_for_selector("#banner:visible")
    assert "All lines are busy" in page.inner_text("#banner")
    assert page.get_attribute("body", "data-state") == "idle"
    server.control(full=False)
    page.click("#banner-action")
    page.wait_for_selector(_LIVE)


def test_pictures_that_cannot_be_used_are_explained(server, visit, tmp_path):
    page = visit(server.url)
    page.wait_for_selector(".face img")
    (tmp_path / "large.png").write_bytes(bytes(400_000))
    page.set_input_files("#picture", tmp_path / "large.png")
    page.wait_for_selector("#picture-words:visible")
    assert re.search(r"too large: 0\.4 MB, at most 0\.3 MB", page.inner_text("#picture-words"))
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#picture", tmp_path / "text.png")
    _until(page, "document.getElementById('picture-words').textContent.includes('not a picture')")
    assert page.locator(".face:has-text('Yours')").count() == 0


def test_a_key_is_asked_for_once(server, visit):
    server.control(token="secret")
    page = visit(server.url)
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector(".face img")
    page.reload()
    page.wait_for_selector(".face img")
    page.goto("about:blank")
    page.goto(f"{server.url}/#token=secret")
    page.wait_for_selector(".face img")
    assert "secret" not in page.url


def test_captions_show_text_as_text(server, visit):
    page = visit(server.url)
    _call(page)
    line = page.wait_for_selector("#captions li[data-who=avatar]")
    assert line.inner_text().endswith("<b>Ask me anything</b>.")
    assert line.evaluate("e => e.querySelectorAll('b').length") == 1  # only the name
    page.click("#captions-toggle")
    assert page.is_hidden("#captions")


def test_mode_and_character_change_during_the_call(server, visit):
    page = visit(server.url)
    _call(page, "mirror")
    assert page.is_hidden("#interrupt")
    page.click("#setup-toggle")
    _choose(page, "mode", "agent")
    _choose(page, "character", "cleo")
    _until(page, "document.getElementById('name').textContent === 'Cleo'")
    _eventually(lambda: server.sent("character"))
    assert server.sent("mode")[-1]["mode"] == "agent"
    assert server.sent("character")[-1]["character"] == "cleo"
    page.keyboard.press("Escape")
    assert page.is_hidden("#setup") and page.is_visible("#interrupt")


def test_the_panel_shows_where_the_time_goes(server, visit):
    page = visit(server.url)
    _call(page)
    page.click("#figures-toggle")
    _until(page, "document.querySelectorAll('#spans tr').length === 9")
    _until(page, "parseFloat(document.getElementById('f-fps').textContent) > 1")
    # The answer to the first ping may be a second younger than the first frame rate.
    _until(page, "document.getElementById('f-rtt').textContent !== '–'")
    assert page.inner_text("#spans tr:first-child").split()[-2:] == ["240", "312"]
    for name in ("total", "late", "av", "buffer", "rtt"):
        assert re.fullmatch(r"−?\d+(\.\d)?", page.inner_text(f"#f-{name}")), name
