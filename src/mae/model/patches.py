"""Convert images to sequences of flattened patches and back."""

from __future__ import annotations

from torch import Tensor

from mae.errors import ShapeError


def patch_grid(images: Tensor, *, patch_size: int) -> tuple[int, int]:
    """Count the patches of images B C H W along height and width.

    Raises:
        ShapeError: for another number of axes, or a size not divisible by the patch size.
    """
    if images.ndim != 4:
        raise ShapeError(
            f"images: got shape {tuple(images.shape)}, expected B C H W; add the missing axes"
        )
    H, W = images.shape[2:]
    if H % patch_size or W % patch_size or not H * W:
        raise ShapeError(
            f"image size: got {H} x {W}, expected multiples of the patch size {patch_size}; "
            "crop or resize the images first"
        )
    return H // patch_size, W // patch_size


def require_channels_first(images: Tensor, *, channels: int) -> None:
    """Reject images whose axes are in another order, by the axis that looks like the channels.

    Raises:
        ShapeError: for something else than a tensor, for one image, and for channels last, with
            the conversion to apply.
    """
    if not isinstance(images, Tensor):
        raise ShapeError(
            f"images: got {type(images).__name__}, expected a tensor B C H W; mae.embed takes "
            "arrays, paths and Pillow images"
        )
    shape = tuple(images.shape)
    conversions = {
        (3, 0): ("axis 0 looks like the channels of one image", "images[None]"),
        (3, 2): ("axis 2 looks like the channels of one image", "images.permute(2, 0, 1)[None]"),
        (4, 3): ("axis 3 looks like the channels", "images.permute(0, 3, 1, 2)"),
    }
    if len(shape) == 4 and shape[1] == channels:
        return
    for (axes, axis), (what, how) in conversions.items():
        if len(shape) == axes and shape[axis] == channels:
            raise ShapeError(f"images: got shape {shape}, expected B C H W; {what}: give {how}")


def patchify(images: Tensor, *, patch_size: int) -> Tensor:
    """Cut images into a row-major sequence of flattened patches.

    Args:
        images: B C H W; H and W need not be equal.
        patch_size: edge `p` in pixels; must divide H and W.

    Returns:
        B L P with L = (H/p)(W/p) and P = p*p*C; values ordered row, column, channel.

    Raises:
        ShapeError: if `p` does not divide H or W, or `images` has other axes.

    Source: He et al. 2021, section 3; the order of the published code's targets (golden test).
    """
    (h, w), p = patch_grid(images, patch_size=patch_size), patch_size
    B, C, _, _ = images.shape
    return images.reshape(B, C, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(B, h * w, p * p * C)


def unpatchify(patches: Tensor, *, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Reassemble images from a row-major sequence of flattened patches: inverse of `patchify`.

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
