"""A picture with the classes that were predicted beside it, each with a bar as long as it is likely."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from PIL import Image, ImageDraw, ImageFont

from ..image.io import pixels_of
from ..image.predict import Prediction

INK, PALE, PAPER, BAR, BEST = (24, 28, 36), (110, 118, 130), (255, 255, 255), (150, 176, 214), (28, 92, 190)
SIDE, MARGIN, COLUMN, ROW, THICKNESS = 360, 20, 340, 46, 10


def draw(image: Path, predictions: Sequence[Prediction], model: str) -> Image.Image:
    """The picture on the left, at most 360 pixels on a side, and one row for each prediction on the right."""
    shown = fitted(Image.fromarray(pixels_of(image, "RGB")))
    height = max(shown.height, len(predictions) * ROW + ROW // 2) + 2 * MARGIN
    sheet = Image.new("RGB", (shown.width + COLUMN + 3 * MARGIN, height), PAPER)
    sheet.paste(shown, (MARGIN, MARGIN))
    pen, large, small = ImageDraw.Draw(sheet), font(16), font(12)
    left, right = shown.width + 2 * MARGIN, shown.width + 2 * MARGIN + COLUMN
    for row, one in enumerate(predictions):
        top = MARGIN + row * ROW
        share = f"{100 * one.probability:.1f} %"
        room = COLUMN - width(pen, share, large) - MARGIN
        pen.text((left, top), shortened(pen, one.label, large, room), fill=INK, font=large)
        pen.text((right - width(pen, share, large), top), share, fill=INK, font=large)
        bar = top + 22
        pen.rectangle((left, bar, right, bar + THICKNESS), fill=(238, 241, 245))
        if one.probability > 0:
            end = left + max(1, round(COLUMN * one.probability))
            pen.rectangle((left, bar, end, bar + THICKNESS), fill=BAR if row else BEST)
    pen.text((left, MARGIN + len(predictions) * ROW), shortened(pen, model, small, COLUMN), fill=PALE, font=small)
    return sheet


def fitted(image: Image.Image) -> Image.Image:
    """Its long side 360 pixels; a small one in visible squares, as the network is given no more than these."""
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 4 else Image.Resampling.NEAREST)


def font(size: int) -> Any:
    """Pillow's own font; before Pillow 10.1 it has one size."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def width(pen: ImageDraw.ImageDraw, text: str, face: Any) -> int:
    return round(pen.textlength(text, font=face))


def shortened(pen: ImageDraw.ImageDraw, text: str, face: Any, room: int) -> str:
    """The text, or as much of it as there is room for, in letters that the font has."""
    if not isinstance(face, getattr(ImageFont, "FreeTypeFont", ())):
        text = text.encode("latin-1", "replace").decode("latin-1")  # the font of older Pillows has no others
    if width(pen, text, face) <= room:
        return text
    while text and width(pen, text + "...", face) > room:
        text = text[:-1]
    return text + "..."
