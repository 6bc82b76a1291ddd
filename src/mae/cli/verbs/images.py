"""Verbs for image data: inspect, pack, verify, and benchmark loading."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mae.cli.verbs.shown import Shown, shown
from mae.config.run import PretrainConfig
from mae.recipes.custom import build_config
from mae.weights.given import Given


def data_inspect(
    folder: str,
    *,
    limit: int | None = None,
    out: Path | None = None,
    quarantine: Path | None = None,
    quiet: bool = False,
) -> Shown:
    """Say what is in a folder of pictures, what is broken, and what pre-training would do with it.

    OUT is an .html of everything, or a .png contact sheet.
    """
    from mae.jobs import data_inspect as job

    ask = partial(job.inspect_data, limit=limit, out=out, quarantine=quarantine, quiet=quiet)
    result = ask(folder)
    return Shown(result.values(), result.rows())


def data_pack(
    data: str,
    dst: Path,
    *,
    short_side: int | None = None,
    quality: int | None = None,
    raw: int | None = None,
    quiet: bool = False,
) -> Shown:
    """Pack pictures into shards that are read at random; goes on where it was stopped.

    A finished pack takes in pictures of other names. The files stay as they are, byte for byte,
    unless --short-side or --raw says otherwise.
    """
    from mae.jobs import data_pack as job

    form = job.asked_form(short_side=short_side, quality=quality, raw=raw)
    return shown(job.pack(data, dst, form=form, quiet=quiet))


def data_verify(pack: Path, *, quiet: bool = False) -> Shown:
    """Read a pack whole, compare every digest, and name the damaged pictures."""
    from mae.jobs.data_verify import verify

    return shown(verify(pack, quiet=quiet))


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
) -> Shown:
    """Measure the loader alone, the step alone and both, and say which is the wall of a run here.

    Also how long the run would take, and what would help. On weights that are thrown away.
    """
    settled = build_config(recipe, PretrainConfig, file=config, fields=fields)
    from mae.jobs.bench import bench_run

    ask = partial(bench_run, recipe=recipe, init=init, seconds=seconds, quiet=quiet)
    result = ask(data, settled, **given)
    return Shown(result.values(), result.rows())


def bench_data(
    recipe: str = "folder",
    *,
    data: str,
    images_per_second: float | None = None,
    seconds: float = 10.0,
    batch: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> Shown:
    """Measure how fast one core reads, decodes and crops pictures, and which of it is the wall.

    Also how many cores a GPU needs that takes --images-per-second of them.
    """
    from mae.jobs import bench_data as job

    config = build_config(recipe, PretrainConfig, fields={"batch": batch, "device": device})
    ask = partial(job.bench_data, images_per_second=images_per_second, seconds=seconds, quiet=quiet)
    result = ask(data, config)
    return Shown(result.values(), result.rows())
