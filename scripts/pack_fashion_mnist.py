"""Make the built-in images from the four original Fashion-MNIST files, or verify them.

    python scripts/pack_fashion_mnist.py FOLDER             # writes src/mae/assets/fashion-mnist.xz
    python scripts/pack_fashion_mnist.py FOLDER --verify    # compares it, image by image

FOLDER holds {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz; Debian's package
`dataset-fashion-mnist` puts them in /usr/share/datasets/fashion-mnist.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import lzma
import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data.sources.fashion_mnist import DIGEST, NUM_TEST, NUM_TRAIN, unpack

ASSET = Path(__file__).parents[1] / "src" / "mae" / "assets" / "fashion-mnist.xz"
# Four bits of the byte before are the context of a byte; its place tells nothing.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: magic (0, 0, 8, axes), sizes, values."""
    content = gzip.decompress(path.read_bytes())
    zero, kind, axes = struct.unpack(">HBB", content[:4])
    if (zero, kind) != (0, 8):
        raise SystemExit(f"{path}: not an IDX file of bytes")
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def originals(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images B 28 28 and labels B that are packed: test, then the first of training."""
    images, labels = (
        np.concatenate(
            [
                read_idx(folder / f"t10k-{what}-ubyte.gz")[:NUM_TEST],
                read_idx(folder / f"train-{what}-ubyte.gz")[:NUM_TRAIN],
            ]
        )
        for what in ("images-idx3", "labels-idx1")
    )
    return images, labels


def pack(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bytes:
    """Encode as `fashion_mnist.unpack` reads it, and print the digest to pin."""
    planes = images[labels.argsort(kind="stable")].transpose(0, 2, 1)
    content = labels.tobytes() + planes.tobytes()
    print("DIGEST", hashlib.sha256(content).hexdigest())
    return lzma.compress(content, filters=FILTERS)


def verify(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bool:
    """Compare the packed file with the originals and print sizes and digests."""
    packed = ASSET.read_bytes()
    found_images, found_labels = unpack(packed)
    same = np.array_equal(found_images, images)
    same = same and np.array_equal(found_labels, labels)
    print(f"{ASSET.name}: {len(packed)} bytes, {NUM_TEST} test and {NUM_TRAIN} training images")
    print("content  sha256", DIGEST)
    for name, array in (("images", found_images), ("labels", found_labels.astype(np.uint8))):
        print(f"{name:8} sha256", hashlib.sha256(array.tobytes()).hexdigest())
    print("every image and label as in the originals" if same else "DIFFERENT from the originals")
    return same


def main() -> int:
    """Pack or verify; exit 1 if the packed file differs from the originals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the four original files")
    parser.add_argument("--verify", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    images, labels = originals(options.folder)
    if options.verify:
        return 0 if verify(images, labels) else 1
    ASSET.write_bytes(pack(images, labels))
    print(f"wrote {ASSET} ({ASSET.stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
