"""Name what is wrong with a pre-training run, from the rows of its health checks.

The thresholds were chosen on planted failures and sound runs and tested on others
(docs/health.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""A check; its fields are described in docs/health.md."""

DUPLICATES = 0.5
"""Estimated fraction of images that repeat others."""
LEAST_STD, MOST_STD = 0.1, 10.0
"""Of the normalised pixels, which is about 1 with the right mean and std."""
VARIATION, DEAD = 0.05, 0.9
"""Of the variation of the features at the first check (1 - mean cosine); fraction of directions."""
LOST = 1.3
"""Loss over the smallest before."""
BEGUN = 100
"""Step from which a network has learned something."""
LEAST_GAIN, LEAST_RISE = 0.5, 0.5
"""Over mean colour, in dB: at half of the run; and from step `BEGUN` to three quarters of it."""
BEHIND = 2.0
"""Behind in-fill at the end, in dB."""
HELD_OUT_ROSE, TRAIN_FELL = 1.05, 0.9
"""Losses over those at the smallest loss of held-out images."""


class Finding(NamedTuple):
    """Something wrong with a run."""

    name: str
    """A few words, the same for every run."""
    text: str
    """One line: the name, what was measured, what to do."""


def findings(rows: Sequence[Row], *, num_steps: int) -> list[Finding]:
    """Return what is wrong at the last row of a run.

    Args:
        rows: of the health checks so far, at least one.
        num_steps: of the whole run.
    """
    if rows[-1]["loss"] is None:
        return [_finding("diverging", "the loss is not finite; lower --lr")]
    sound = [row for row in rows if row["loss"] is not None]
    checks: tuple[Callable[..., str | None], ...] = (
        _duplicates, _off_scale, _collapsed, _diverging, _memorising, _not_learning, _too_short
    )  # fmt: skip
    names = ("mostly duplicates", "pixels off scale", "collapsed", "diverging", "memorising",
             "not learning", "too short")  # fmt: skip
    found: list[Finding] = []
    for name, check in zip(names, checks, strict=True):
        if name == "too short" and found:  # more steps would not mend that
            break
        if (text := check(sound, num_steps)) is not None:
            found.append(_finding(name, text))
    return found


def _finding(name: str, text: str) -> Finding:
    return Finding(name, f"{name}: {text}")


def _duplicates(rows: Sequence[Row], num_steps: int) -> str | None:
    share = rows[-1]["duplicates"]
    if share < DUPLICATES:
        return None
    return (
        f"an estimated {share:.0%} of the images repeat others; mae data inspect lists them, "
        "remove the copies"
    )


def _off_scale(rows: Sequence[Row], num_steps: int) -> str | None:
    std = rows[-1].get("input_std", 1.0)  # runs begun by older versions have none
    if LEAST_STD <= std <= MOST_STD:
        return None
    return (
        f"the pixels have a std of {std:.3g} after normalisation, expected about 1; begin again "
        "with --measure-pixels, or weights (--init) made for such images"
    )


def _collapsed(rows: Sequence[Row], num_steps: int) -> str | None:
    first, last = rows[0], rows[-1]
    late = [row for row in rows if row["step"] >= 2 * BEGUN][-2:]
    # Networks that begin to learn often pass a plateau where features hardly vary.
    if len(late) < 2 or not all("rank" in row for row in (first, *late)):
        return None
    flat = all(1 - row["cosine"] < VARIATION * (1 - first["cosine"]) for row in late)
    dead = first["dead"] < DEAD <= min(row["dead"] for row in late)
    if not flat and not dead:
        return None
    return (
        f"the features of all images are almost the same (mean cosine {last['cosine']:.4f}, "
        f"effective rank {last['rank']:.1f}, at the first check {first['rank']:.1f}); lower --lr "
        "and --optim.weight-decay, or check that the pixels vary after normalisation"
    )


def _diverging(rows: Sequence[Row], num_steps: int) -> str | None:
    best, last = min(rows, key=lambda row: row["loss"]), rows[-1]
    if last["loss"] < LOST * best["loss"]:
        return None
    return (
        f"the loss on the same training images was {best['loss']:.3g} at step {best['step']:,} and "
        f"is {last['loss']:.3g} now; lower --lr, or go back to a checkpoint by --resume-from"
    )


def _memorising(rows: Sequence[Row], num_steps: int) -> str | None:
    held = [row for row in rows if row.get("held_out_loss") is not None]
    if not held or held[-1] is not rows[-1]:
        return None
    best, last = min(held, key=lambda row: row["held_out_loss"]), held[-1]
    rose, fell = (last[name] / best[name] for name in ("held_out_loss", "loss"))
    if rose < HELD_OUT_ROSE or fell > TRAIN_FELL:
        return None
    return (
        f"since step {best['step']:,} the loss fell by {1 - fell:.0%} on training images and rose "
        f"by {rose - 1:.0%} on held-out ones; use more images, fewer --epochs or stronger crops "
        "(--augment.crop-scale 0.2 1)"
    )


def _not_learning(rows: Sequence[Row], num_steps: int) -> str | None:
    begun, last = next((row for row in rows if row["step"] >= BEGUN), None), rows[-1]
    if begun is None or last["step"] < max(num_steps / 2, 2 * BEGUN):
        return None
    gain, over_mean = last["gain"], last["gain_over_mean"]
    advice = "check --lr, the mask ratio, and that the images hold more than noise"
    if gain < 0 and over_mean < LEAST_GAIN:
        return (
            f"the reconstruction is {-gain:.1f} dB behind in-fill from the neighbours and "
            f"{over_mean:+.1f} dB from the mean colour; {advice}"
        )
    rise = over_mean - begun["gain_over_mean"]
    # A network that began at random is behind the mean colour at first.
    at_random, early = rows[0]["gain_over_mean"] < 0, begun["step"] <= num_steps / 5
    if at_random and early and last["step"] >= 0.75 * num_steps and rise < LEAST_RISE:
        return (
            f"the reconstruction is no better than at step {begun['step']:,} ({rise:+.1f} dB); "
            f"{advice}"
        )
    return None


def _too_short(rows: Sequence[Row], num_steps: int) -> str | None:
    last = rows[-1]
    if last["step"] < num_steps or last["gain"] > -BEHIND:
        return None
    return (
        f"at the last step the reconstruction is still {-last['gain']:.1f} dB behind in-fill from "
        "the neighbours; train longer (--epochs, --minutes)"
    )
