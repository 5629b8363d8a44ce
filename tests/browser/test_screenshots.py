"""Pictures of the page, for eyes and for the README.

They go to a temporary folder, and show the server without a model. With a folder in
TM_JAX_SCREENSHOTS they go there and show the preset `nano`:

  TM_JAX_SCREENSHOTS=docs launch/test.sh tests/browser/test_screenshots.py
"""

import os
import pathlib

import numpy as np
from PIL import Image
import pytest

_FOLDER = os.environ.get("TM_JAX_SCREENSHOTS")
_DESKTOP, _MOBILE = (1280, 800), (390, 844)


@pytest.fixture
def shown(request, process):
    """A server to take pictures of."""
    if not _FOLDER:
        yield request.getfixturevalue("server")
        return
    pytest.importorskip("aiohttp", reason="needs the package aiohttp")
    nano = process(("launch/serve.py", "--preset=nano", "--port={port}"), ready="/readyz")
    nano.start(timeout_s=400)
    yield nano
    nano.kill()


def _call(page, mode):
    page.wait_for_selector(".face img")
    page.click(f"label:has(input[name=mode][value={mode}])")
    page.click("#call")
    page.wait_for_selector("body[data-state=live]")


def test_screenshots(shown, visit, tmp_path):
    folder = pathlib.Path(_FOLDER) if _FOLDER else tmp_path
    sizes = {}

    def take(page, name):
        page.screenshot(path=folder / f"page_{name}.png")
        sizes[name] = (page.viewport_size["width"], page.viewport_size["height"])

    def open_page(size, scheme):
        width, height = size
        init = "measured.paused = true;"  # reading the canvas back costs time
        return visit(shown.url, width=width, height=height, scheme=scheme, init=init)

    page = open_page(_DESKTOP, "light")
    page.wait_for_selector(".face img")
    page.wait_for_timeout(1000)  # the picture in its full size arrives
    take(page, "desktop")
    _call(page, "mirror")
    page.wait_for_timeout(6000 if _FOLDER else 1000)
    take(page, "call")
    page.click("#figures-toggle")
    page.wait_for_selector("#spans tr th")
    page.wait_for_timeout(3000 if _FOLDER else 500)
    take(page, "figures")
    page.click("#hangup")

    page = open_page(_MOBILE, "dark")
    page.wait_for_selector(".face img")
    page.wait_for_timeout(1000)
    take(page, "mobile")
    _call(page, "mirror")
    page.wait_for_timeout(6000 if _FOLDER else 1500)
    take(page, "mobile_call")
    page.click("#hangup")

    for name, size in sizes.items():
        with Image.open(folder / f"page_{name}.png") as image:
            assert image.size == size
            assert np.asarray(image.convert("L")).std() > 20  # not an empty page
