"""Frames for people to look at: truth above what was generated, at moments of speech."""

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

_TILE = 160
_GAP = 6
_CAPTION = 20
_LEFT = 84
_PAPER, _INK = (250, 249, 246), (60, 58, 54)
_COLUMNS = ("mouth_open", "mouth_width", "mouth_round", "teeth", "tongue", "smile")


def moments(track) -> dict[str, int]:
    """Frames that show typical mouths, chosen by the true curves of a track."""
    mouth = dict(zip(_COLUMNS, track.mouth.T))
    spoken = track.active > 0
    width = np.where(spoken, mouth["mouth_width"], -2)
    still = np.convolve(~spoken, np.ones(5), "same")
    at = {
        "silence": np.argmax(still),
        "open (A)": np.argmax(mouth["mouth_open"]),
        "round (O)": np.argmax(mouth["mouth_round"] * np.minimum(mouth["mouth_open"], 0.5)),
        "spread (I)": np.argmax(width + (mouth["mouth_open"] > 0.15)),
        "teeth (F, S)": np.argmax(mouth["teeth"]),
        "shut (M)": np.argmax(spoken & (mouth["mouth_open"] < 1e-3)),
    }
    return {name: int(frame) for name, frame in at.items()}


def draw(clips: list[tuple]) -> Image.Image:
    """Lays out clips, two rows each.

    Args:
      clips: (scene, true frames [T, H, W, 3], generated frames [T, H, W, 3]) of each.
    """
    font = ImageFont.load_default(size=12)
    columns = 1 + len(moments(clips[0][0].track))
    row = _TILE + _CAPTION
    size = (_LEFT + columns * (_TILE + _GAP), len(clips) * (2 * row + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (scene, truth, generated) in enumerate(clips):
        at = moments(scene.track)
        for half, (name, video) in enumerate((("truth", truth), ("generated", generated))):
            top = number * (2 * row + _GAP) + half * row
            pen.text((_GAP, top + _CAPTION), f"{scene.style}\n{name}", _INK, font)
            pictures = {"reference": scene.picture}
            pictures |= {f"{k} {f / 25:.2f} s": video[f] for k, f in at.items()}
            for column, (caption, picture) in enumerate(pictures.items()):
                left = _LEFT + column * (_TILE + _GAP)
                pen.text((left, top + 4), caption, _INK, font)
                tile = Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
                sheet.paste(tile, (left, top + _CAPTION))
    return sheet
