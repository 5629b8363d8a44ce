"""Draws a contact sheet: moments of a video side by side, one row per character."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

_MARGIN = 8
_CAPTION = 22
_FRAME = 3
_PAPER = (250, 249, 246)
_INK = (60, 58, 54)
_ACCENT = (224, 122, 48)


def draw(
    rows: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    times_s: Sequence[float],
    speakers: Sequence[int],
    size: int = 144,
) -> Image.Image:
    """Lays out the pictures with a time above each column and a name beside each row.

    Args:
      rows: For every character, one picture per moment, uint8 [H, W, 3].
      names: Name of every row.
      times_s: Time of every column.
      speakers: Row that speaks in every column; its picture gets a coloured frame.
      size: Side of a picture on the sheet in pixels.
    """
    if len(rows) != len(names) or any(len(row) != len(times_s) for row in rows):
        raise ValueError(
            f"rows must be {len(names)} of {len(times_s)} pictures, "
            f"got {[len(row) for row in rows]}."
        )
    font = ImageFont.load_default(size=13)
    left = _MARGIN + max(round(font.getlength(name)) for name in names) + _MARGIN
    step = size + _MARGIN
    sheet = Image.new(
        "RGB", (left + step * len(times_s), _CAPTION + step * len(rows)), _PAPER
    )
    pen = ImageDraw.Draw(sheet)
    for column, time_s in enumerate(times_s):
        centre = left + column * step + size // 2
        pen.text((centre, _CAPTION // 2), f"{time_s:.2f} s", _INK, font, anchor="mm")
    for index, (row, name) in enumerate(zip(rows, names)):
        top = _CAPTION + index * step
        pen.text((_MARGIN, top + size // 2), name, _INK, font, anchor="lm")
        for column, picture in enumerate(row):
            at = (left + column * step, top)
            tile = Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(tile, at)
            if speakers[column] == index:
                box = (at[0], at[1], at[0] + size - 1, at[1] + size - 1)
                pen.rectangle(box, outline=_ACCENT, width=_FRAME)
    return sheet
