"""Images as sequences of flattened patches, and back."""

from __future__ import annotations

from torch import Tensor

from mae.errors import ShapeError


def patchify(images: Tensor, *, patch_size: int) -> Tensor:
    """Cut images into a row-major sequence of flattened patches.

    Args:
        images: B C H W; H and W need not be equal.
        patch_size: edge `p` in pixels; must divide H and W.

    Returns:
        B L P with L = (H/p)(W/p) and P = p*p*C; values ordered row, column, channel.

    Raises:
        ShapeError: if `p` does not divide H or W.

    Source: paper, section 3; the order of the published targets (golden test).
    """
    B, C, H, W = images.shape
    p = patch_size
    if H % p or W % p:
        raise ShapeError(
            f"picture size: got {H} x {W}, expected multiples of the patch size {p}; "
            "crop or resize the pictures first"
        )
    h, w = H // p, W // p
    return images.reshape(B, C, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(B, h * w, p * p * C)


def unpatchify(patches: Tensor, *, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Put a row-major sequence of flattened patches together again: the inverse of `patchify`.

    Args:
        patches: B L P with L = h*w and P = p*p*C.
        patch_size: edge `p` in pixels.
        grid: patches along height and width, (h, w).

    Returns:
        B C H W.
    """
    B, _, P = patches.shape
    (h, w), p = grid, patch_size
    C = P // p**2
    return patches.reshape(B, h, w, p, p, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, h * p, w * p)
