"""Built-in Fashion-MNIST images (Xiao et al. 2017, MIT licence), lossless.

The package has all 10,000 test images and the first 30,000 of the 60,000 training images, in the
original order. The xz file holds the labels of the test and then the training images, a byte each,
followed by the images, stably sorted by label and transposed, which compresses 2 % better than row
order. `scripts/pack_fashion_mnist.py` creates it.
"""

from __future__ import annotations

import functools
import hashlib
import lzma
from importlib import resources
from typing import Literal

import numpy as np

from mae.data.sources.source import ArraySource
from mae.data.types import Integers, Pixels
from mae.errors import DataError

Split = Literal["train", "test"]

CLASS_NAMES = tuple(
    "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
)
NUM_TEST, NUM_TRAIN = 10_000, 30_000
DIGEST = "aacd88d7d37f571aa84744793b6ebc0dea43e620d97bf8f18892d91ed8e6cd8f"
"""sha256 of the unpacked file."""

_FILE = "fashion-mnist.xz"
_EDGE = 28  # pixels
_REINSTALL = "Install the package again"


def fashion_mnist(split: Split) -> ArraySource:
    """Return the built-in images: 28 x 28, one channel, uint8, with labels, cached in memory.

    Raises:
        DataError: if the packed file is missing or damaged.
    """
    part = slice(None, NUM_TEST) if split == "test" else slice(NUM_TEST, None)
    images, labels = _everything()
    return ArraySource(images[part], labels=labels[part], class_names=CLASS_NAMES)


@functools.cache
def _everything() -> tuple[Pixels, Integers]:
    try:
        packed = (resources.files("mae") / "assets" / _FILE).read_bytes()
    except OSError as error:
        raise DataError(f"built-in images: no {_FILE} in the package. {_REINSTALL}") from error
    return unpack(packed)


def unpack(packed: bytes) -> tuple[Pixels, Integers]:
    """Decode the packed file to images B 28 28 and labels B, test before training, read-only.

    Raises:
        DataError: if the content does not match `DIGEST`.
    """
    try:
        content = lzma.decompress(packed)
    except (lzma.LZMAError, EOFError) as error:
        raise DataError(f"built-in images: {_FILE} is damaged ({error}). {_REINSTALL}") from error
    if hashlib.sha256(content).hexdigest() != DIGEST:
        raise DataError(f"built-in images: {_FILE} is another file (sha256). {_REINSTALL}")
    values = np.frombuffer(content, np.uint8)
    labels, planes = np.split(values, [NUM_TEST + NUM_TRAIN])
    images = np.empty((len(labels), _EDGE, _EDGE), np.uint8)
    images[labels.argsort(kind="stable")] = planes.reshape(images.shape).transpose(0, 2, 1)
    numbers = labels.astype(np.int64)
    images.flags.writeable = numbers.flags.writeable = False  # one copy serves every caller
    return images, numbers
