"""Verbs for image data: inspect, pack, verify, and benchmark loading."""

from __future__ import annotations

from pathlib import Path

from mae.config.run import PretrainConfig
from mae.recipes.custom import build_config, kept_fields
from mae.weights.given import Given


def data_inspect(
    folder: str,
    *,
    limit: int | None = None,
    out: Path | None = None,
    quarantine: Path | None = None,
    quiet: bool = False,
) -> object:
    """Report what a folder of images holds, what is broken, and what a run needs.

    Args:
        folder: Folder of images, at any depth; or fashion-mnist, the built-in images.
        limit: Number of images to read, evenly spread; none: all.
        out: Report to write: .html with everything, or .png with a contact sheet.
        quarantine: Folder to move broken files to, under the same names; none: move nothing.
    """
    from mae.jobs.data_inspect import inspect_data

    return inspect_data(folder, limit=limit, out=out, quarantine=quarantine, quiet=quiet)


def data_pack(
    data: str,
    dst: Path,
    *,
    short_side: int | None = None,
    quality: int | None = None,
    raw: int | None = None,
    quiet: bool = False,
) -> object:
    """Pack images into shards for fast random reads; resumes where it was stopped.

    Images with new names are added to a finished pack. Files are stored byte for byte, unless
    --short-side or --raw is given.

    Args:
        dst: Folder of the pack.
        short_side: Pixels to which the shorter side of larger images is reduced; none: as it is.
        quality: JPEG quality with --short-side, 1 to 100; none: 90.
        raw: Edge in pixels of the central square to store decoded; none: store files.
    """
    from mae.jobs.data_pack import asked_form, pack

    form = asked_form(short_side=short_side, quality=quality, raw=raw)
    return pack(data, dst, form=form, quiet=quiet)


def data_verify(pack: Path, *, quiet: bool = False) -> object:
    """Read a whole pack, compare every digest, and name the damaged images.

    Args:
        pack: Folder that mae data pack wrote.
    """
    from mae.jobs.data_verify import verify

    return verify(pack, quiet=quiet)


def bench(
    recipe: str = "folder",
    *,
    data: str,
    init: Path | None = None,
    given: Given,
    seconds: float = 20.0,
    config: Path | None = None,
    quiet: bool = False,
    **fields: object,
) -> object:
    """Measure the loader, the step and both together, and name the bottleneck of a run.

    Also prints how long the run would take, and what would help. The trained weights are discarded.

    Args:
        init: Weights, run or hf:OWNER/NAME to start from.
        seconds: Time to measure for, in seconds.
    """
    resolved = build_config(recipe, PretrainConfig, file=config, fields=fields)
    kept = kept_fields(recipe, fields, file=config)
    from mae.jobs.bench import bench_run

    return bench_run(
        data, resolved, recipe=recipe, init=init, seconds=seconds, kept=kept, quiet=quiet, **given
    )


def bench_data(
    recipe: str = "folder",
    *,
    data: str,
    images_per_second: float | None = None,
    seconds: float = 10.0,
    batch: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> object:
    """Measure how fast one core reads, decodes and crops, and name the slowest stage.

    Also prints how many cores keep a GPU busy.

    Args:
        recipe: Recipe whose image size and crops to use (mae recipes list).
        images_per_second: Rate of the GPU; none: estimates of the published models on an H100.
        seconds: Time to measure for, in seconds.
        batch: Images in a batch.
    """
    from mae.jobs import bench_data as job

    config = build_config(recipe, PretrainConfig, fields={"batch": batch, "device": device})
    return job.bench_data(
        data, config, images_per_second=images_per_second, seconds=seconds, quiet=quiet
    )
