"""RandAugment (Cubuk et al. 2020) by timm, deterministic in (seed, epoch, id).

timm draws from the global generators of `random` and numpy; both are seeded for each image and
restored afterwards.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mae.data.decoding.decode import PixelKind
from mae.data.sampling.draws import Stream, generator
from mae.data.types import Integers, Pixels, Size
from mae.errors import ConfigError

# timm ignores terms it does not know, so a typing error would go unnoticed.
_POLICY = re.compile(r"rand(-(m|n|mmax|inc)\d+|-(mstd|p)\d+(\.\d+)?)*")


class RandAugment(NamedTuple):
    """A RandAugment policy and its fill colour."""

    text: str
    """In timm's syntax, such as rand-m9-mstd0.5-inc1."""
    mean: tuple[float, ...]
    """Fill value of each channel, 0 to 1, for pixels outside a transformed image."""


def check_randaugment(randaugment: RandAugment, kind: PixelKind) -> None:
    """Check that timm knows a policy and can apply it to images of a kind.

    Raises:
        ConfigError: if it does not, with a message of one line.
    """
    if kind.dtype != "uint8" or kind.channels not in (1, 3):
        got = f"{kind.channels} channels of {kind.dtype}"
        raise ConfigError(f"rand_augment: got {got}, expected 1 or 3 of uint8; leave it out")
    try:
        if not _POLICY.fullmatch(randaugment.text):
            raise ValueError("unknown part")
        _transform(randaugment, (224, 224))
    except (ValueError, AssertionError, LookupError) as error:
        raise ConfigError(
            f"rand_augment: got {randaugment.text!r} ({error}), expected timm's terms: rand-m9-inc1"
        ) from error


def augmented(
    images: Pixels, randaugment: RandAugment, ids: Integers, *, seed: int, epoch: int
) -> Pixels:
    """Apply separately drawn operations to each image: B H W C to a copy of the same shape."""
    transform = _transform(randaugment, images.shape[1:3])
    changed = np.empty_like(images)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        for i, image in enumerate(images):
            own = generator(seed, epoch, int(ids[i]), stream=Stream.AUGMENT)
            words = own.integers(2**32, size=4, dtype=np.uint32)
            random.seed(int(words[0]))
            np.random.seed(words[1:])
            pixels = np.ascontiguousarray(image)
            shown = Image.fromarray(pixels[..., 0] if image.shape[2] == 1 else pixels)
            changed[i] = np.asarray(transform(shown)).reshape(image.shape)
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    return changed


@lru_cache(maxsize=4)
def _transform(randaugment: RandAugment, size: Size) -> Callable[[Any], Any]:
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(min(255, round(255 * value)) for value in randaugment.mean)
    settings = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": fill if len(fill) > 1 else fill[0],
        "interpolation": Image.Resampling.BICUBIC,
    }
    found = rand_augment_transform(randaugment.text, settings)
    for operation in found.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = partial(_posterized, operation.aug_fn)
    transform: Callable[[Any], Any] = found
    return transform


def _posterized(
    posterize: Callable[..., Image.Image], image: Image.Image, bits: int, **settings: object
) -> Image.Image:
    """Posterize as timm does, which keeps 0 bits at the highest magnitude.

    Newer versions of Pillow refuse 0 bits; the result is black, as in older versions.
    """
    if bits > 0:
        return posterize(image, bits, **settings)
    return Image.new(image.mode, image.size)
