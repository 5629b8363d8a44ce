"""A browser without a window that hears a recorded human voice as its microphone."""

from collections.abc import Iterator
import contextlib
import pathlib
import wave

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--allow-loopback-in-peer-connection",
)  # fmt: skip
_PLACES = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
_VOICES = pathlib.Path(__file__).parents[2] / "tm_jax" / "assets" / "voices"


def executable() -> str | None:
    """Where a browser is installed, or None."""
    return next((place for place in _PLACES if pathlib.Path(place).exists()), None)


def write_voice(path: pathlib.Path, name: str = "dashwood_amiable") -> None:
    """Writes a bundled recording as WAV of 16 bits at 48 kHz, as the browser wants it."""
    import av

    resampler = av.AudioResampler("s16", "mono", 48000)
    with wave.open(str(path), "wb") as out, av.open(str(_VOICES / f"{name}.flac")) as container:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(48000)
        for frame in container.decode(audio=0):
            for part in resampler.resample(frame):
                out.writeframes(part.to_ndarray().tobytes())


@contextlib.contextmanager
def launch(voice: pathlib.Path) -> Iterator:
    """Starts the browser with a recording, played in a loop, as its microphone.

    Raises:
      OSError: No browser is installed.
    """
    from playwright import sync_api

    if executable() is None:
        raise OSError("needs a browser: apt-get install chromium.")
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={voice}"]
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=flags)
        try:
            yield browser
        finally:
            browser.close()
