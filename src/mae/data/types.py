"""Names of the types that the data modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
"""One image H W [C] or several B H W C: uint8, uint16 or float32."""

Integers = NDArray[np.int64]
"""Sample ids, class numbers or boxes."""

Draws = NDArray[np.float32]
"""Uniform numbers in [0, 1), a row for each sample."""

Hashes = NDArray[np.uint64]
"""64-bit keys and hashes of draws."""

Flags = NDArray[np.bool_]
"""One truth value for each sample."""

Size = tuple[int, int]
"""Height and width in pixels."""

Log = Callable[[str], None]
"""A function that takes one line of text for the user."""
