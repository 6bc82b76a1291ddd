"""Features of pictures, a few at a time: what embedding and probing share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.augment import center_crop_box
from mae.data.batch import Bad, CentreBox, Prepared, prepared
from mae.data.decode import PixelKind
from mae.data.source import Source
from mae.errors import ConfigError, DataError
from mae.jobs.progress import Progress
from mae.jobs.setup import choose_device
from mae.model.encoder import Encoder, Pool
from mae.weights.load import open_encoder

Ids = NDArray[np.int64]


class FeatureSettings(NamedTuple):
    """How features are computed."""

    pool: Pool = "mean"
    """See `Encoder.encode`."""
    batch: int = 64
    """Pictures encoded at a time."""
    device: str = "auto"
    """See `choose_device`."""

    def checked_device(self) -> torch.device:
        """Give the device, once the settings are found to be possible.

        Raises:
            ConfigError: for a batch of nothing, or a device this machine does not have.
        """
        if self.batch < 1:
            raise ConfigError(f"batch: expected at least 1, got {self.batch}")
        return choose_device(self.device)


DEFAULT = FeatureSettings()


def open_for_features(
    weights: str | Path, settings: FeatureSettings, *, say: Callable[[str], None]
) -> Encoder:
    """Load an encoder onto its device, and say what was taken and left."""
    device = settings.checked_device()
    encoder, notes = open_encoder(weights)
    for note in notes:
        say(note)
    return encoder.to(device).eval()


def prepared_in_batches(
    encoder: Encoder,
    source: Source,
    ids: Sequence[int],
    *,
    batch: int,
    box: CentreBox = center_crop_box,
) -> Iterator[Prepared]:
    """Read pictures in the evaluation view, as the pixels an encoder was trained on."""
    config = encoder.config
    kind = PixelKind(config.pixels.dtype, config.channels)
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        yield prepared(source, part, kind=kind, size=config.image_size, box=box)


class Looked(NamedTuple):
    """Some labelled pictures in the evaluation view."""

    images: Tensor
    """B C H W of the stored type."""
    labels: Ids
    """B."""
    ids: Ids
    """B."""


def labelled_in_batches(
    encoder: Encoder,
    source: Source,
    ids: Ids,
    *,
    batch: int,
    progress: Progress,
    label: str,
    box: CentreBox = center_crop_box,
) -> Iterator[Looked]:
    """Read labelled pictures as `prepared_in_batches` does, and show how far it is.

    Those that cannot be read are left out and, in the end, said; if all are, it is an error.
    """
    assert source.labels is not None
    bad: list[Bad] = []
    done = 0
    progress.start(len(ids), label=label)
    for got in prepared_in_batches(encoder, source, ids.tolist(), batch=batch, box=box):
        if len(got.ids):
            kept = got.ids.numpy()
            yield Looked(got.images, source.labels[kept], kept)
        bad += got.bad
        done += len(got.ids) + len(got.bad)
        progress.update(done)
    tell_unreadable(len(ids), bad, say=progress.note)


def tell_unreadable(count: int, bad: Sequence[Bad], *, say: Callable[[str], None]) -> None:
    """Say in one line which of the pictures could not be read, the first few by name.

    Raises:
        DataError: if there is no other.
    """
    if bad:
        named = "; ".join(f"{picture.name}: {picture.reason}" for picture in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        text = f"{len(bad)} unreadable, left out: {named}{more}"
        if len(bad) == count:
            raise DataError(f"pictures: none of {count} can be read; {text}")
        say(text)
