"""The most confident mistakes of a classifier, as small images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mae.atomic import write_atomic
from mae.data.batching.batch import SourceReader
from mae.data.decoding.decode import PixelKind, decode
from mae.data.sources.source import Source
from mae.evaluation.metrics import Predictions
from mae.report.contact_sheet import EDGE, thumbnail
from mae.report.figures import png_bytes
from mae.report.predictions import PredictionRow

MOST = 12


class WrongImage(NamedTuple):
    """An image whose predicted class is wrong."""

    name: str
    label: str
    """Its true class."""
    predicted: str
    probability: float
    """Of the predicted class, 0 to 1."""
    image: Image.Image | None
    """None where it was not kept."""


def most_confident(rows: Sequence[PredictionRow]) -> list[PredictionRow]:
    """Return the wrong predictions of the highest probability; ties in the order of the rows."""
    wrong = [row for row in rows if row[1] != row[2]]
    return sorted(wrong, key=lambda row: -row[3])[:MOST]


def wrong_images(
    found: Predictions, rows: Sequence[PredictionRow], source: Source, kind: PixelKind
) -> list[WrongImage]:
    """Read the most confident mistakes.

    Args:
        found: the predictions.
        rows: those of the predictions, in their order, see `prediction_rows`.
        source: the images.
        kind: type and channels that they are decoded to.
    """
    ids = dict(zip((row[0] for row in rows), found.ids.tolist(), strict=True))
    reader, use = SourceReader(source), partial(decode, kind=kind)
    shown = []
    for name, label, predicted, probability, *_ in most_confident(rows):
        pixels = reader.read(ids[name], use)
        image = None if pixels is None else thumbnail(pixels)
        shown.append(WrongImage(name, label, predicted, probability, image))
    return shown


def save_thumbnails(path: Path, wrong: Sequence[WrongImage]) -> None:
    """Write the images side by side, each in the top left corner of a transparent square."""
    sheet = Image.new("RGBA", (EDGE * max(1, len(wrong)), EDGE))
    for place, each in enumerate(wrong):
        if each.image is not None:
            sheet.paste(each.image, (EDGE * place, 0))
    write_atomic(path, png_bytes(sheet))


def read_thumbnails(path: Path, rows: Sequence[PredictionRow]) -> list[WrongImage]:
    """Return the most confident mistakes with the images that `save_thumbnails` wrote, if any.

    Args:
        path: the image of all of them; it may be missing or damaged.
        rows: all predictions, see `prediction_rows`.
    """
    worst = most_confident(rows)
    images: list[Image.Image | None] = [None] * len(worst)
    with suppress(OSError), Image.open(path) as sheet:
        for place in range(len(worst)):
            square = sheet.crop((EDGE * place, 0, EDGE * (place + 1), EDGE))
            if (box := square.getbbox()) is not None:
                images[place] = square.crop(box).convert("RGB")
    return [WrongImage(*row[:4], image) for row, image in zip(worst, images, strict=True)]
