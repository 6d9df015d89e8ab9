"""Draw an image beside its predicted classes, each with a bar of its probability."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from PIL import Image, ImageDraw, ImageFont

from ..image.io import load_image
from ..image.predict import Prediction

BACKGROUND, TEXT, FAINT_TEXT = (255, 255, 255), (24, 28, 36), (110, 118, 130)
BAR_BACKGROUND, BAR, FIRST_BAR = (238, 241, 245), (150, 176, 214), (28, 92, 190)
IMAGE_SIZE, MARGIN, COLUMN, ROW, BAR_HEIGHT = 360, 20, 340, 46, 10  # pixels


def draw_predictions(image: Path, predictions: Sequence[Prediction], model: str) -> Image.Image:
    """Return a drawing: the image on the left, 360 pixels on its long side, and a row for each prediction."""
    thumbnail = resize_to_fit(Image.fromarray(load_image(image, "RGB")))
    height = max(thumbnail.height, len(predictions) * ROW + ROW // 2) + 2 * MARGIN
    drawing = Image.new("RGB", (thumbnail.width + COLUMN + 3 * MARGIN, height), BACKGROUND)
    drawing.paste(thumbnail, (MARGIN, MARGIN))
    draw, large, small = ImageDraw.Draw(drawing), default_font(16), default_font(12)
    left = thumbnail.width + 2 * MARGIN
    right = left + COLUMN
    for row, prediction in enumerate(predictions):
        top = MARGIN + row * ROW
        percent = f"{100 * prediction.probability:.1f} %"
        percent_width = text_width(draw, percent, large)
        label = truncate(draw, prediction.label, large, COLUMN - percent_width - MARGIN)
        draw.text((left, top), label, fill=TEXT, font=large)
        draw.text((right - percent_width, top), percent, fill=TEXT, font=large)
        bar = top + 22
        draw.rectangle((left, bar, right, bar + BAR_HEIGHT), fill=BAR_BACKGROUND)
        if prediction.probability > 0:
            end = left + max(1, round(COLUMN * prediction.probability))
            draw.rectangle((left, bar, end, bar + BAR_HEIGHT), fill=BAR if row else FIRST_BAR)
    caption = truncate(draw, model, small, COLUMN)
    draw.text((left, MARGIN + len(predictions) * ROW), caption, fill=FAINT_TEXT, font=small)
    return drawing


def resize_to_fit(image: Image.Image) -> Image.Image:
    """Resize the long side to 360 pixels; a small image keeps its pixels visible, as the network sees no more."""
    factor = IMAGE_SIZE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 4 else Image.Resampling.NEAREST)


def default_font(size: int) -> Any:
    """Return Pillow's own font; before Pillow 10.1 it has one size."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def text_width(draw: ImageDraw.ImageDraw, text: str, font: Any) -> int:
    """Return the width of a line of text in pixels."""
    return round(draw.textlength(text, font=font))


def truncate(draw: ImageDraw.ImageDraw, text: str, font: Any, max_width: int) -> str:
    """Return the text, shortened to at most ``max_width`` pixels, in characters that the font has."""
    if not isinstance(font, getattr(ImageFont, "FreeTypeFont", ())):
        text = text.encode("latin-1", "replace").decode("latin-1")  # the only ones in older Pillows' font
    if text_width(draw, text, font) <= max_width:
        return text
    while text and text_width(draw, text + "...", font) > max_width:
        text = text[:-1]
    return text + "..."
