"""The figures of docs/scaling.md are those of `mae plan`; the commands of docs/cluster.md parse."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mae.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "scaling.md").read_text()
IMAGES = {"ImageNet-1k": 1_281_167, "ImageNet-21k": 14_197_122, "a billion": 10**9}
NETWORKS = ("vit-b", "vit-l", "vit-h")
GPUS = ("rtx4090", "a100x8", "h100x8", "h100x64")
LARGER = {
    "vit-b": "",
    "vit-l": "",
    "vit-h": "",
    "1.6 billion": "--model.width 1664 --model.depth 48",
    "6.5 billion": "--model.width 4096 --model.depth 32 --model.num-heads 32",
}


def planned(words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*f"plan {words} --json --quiet".split()]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def hours(value: float) -> str:
    if value < 1 / 60:
        return f"{3600 * value:.2g} s"
    return f"{60 * value:.2g} min" if value < 1 else f"{value:,.3g} h"


def epochs(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    for (data, count), size in product(IMAGES.items(), NETWORKS):
        words = f"paper-{size} --precision bf16 --images {count} --gpu"
        found = [planned(f"{words} {gpu}", capsys) for gpu in GPUS]
        yield " | ".join([f"| {data}, {size}", *(hours(1 / f["epochs_per_hour"]) for f in found)])


def loaders(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    for size in NETWORKS:
        cells = []
        for gpu in ("rtx4090", "a100", "h100"):
            found = planned(f"paper-{size} --precision bf16 --gpu {gpu}", capsys)
            rate, cores = found["images_per_second"], found["images_per_second"] / 700
            cells.append(f"{rate:,.0f}, {cores:.2g} cores, {rate * 109e3 / 1e9:.2g} GB/s")
        yield " | ".join([f"| {size}", *cells])


def strategies(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    for name, fields in LARGER.items():
        recipe = f"paper-{name if name in NETWORKS else 'vit-h'} --precision bf16 {fields}"
        cells = [f"| {name}"]
        ddp, fsdp = (
            planned(f"{recipe} --gpu h100x64 --strategy {strategy}", capsys)
            for strategy in ("ddp", "fsdp")
        )
        step = fsdp["batch"] / fsdp["images_per_second"]
        held = (ddp["state_bytes"], fsdp["state_bytes"], fsdp["gathered_bytes"])
        cells += [f"{count / 2**30:.3g} GiB" for count in held]
        sent = fsdp["wire_bytes"]
        cells += [f"{sent / 1e9:.2g} GB", f"{1e3 * sent / 50e9:.0f} ms", f"{1e3 * step:.0f} ms"]
        cells += [
            planned(f"{recipe} --gpu {gpu}x64", capsys)["strategy"]
            for gpu in ("h100", "rtx4090")
        ]  # fmt: skip
        yield " | ".join(cells)


@pytest.mark.slow
@pytest.mark.parametrize("table", [epochs, loaders, strategies], ids=lambda table: table.__name__)
def test_the_figures_of_the_page_are_those_of_a_plan(
    table: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    part = PAGE.partition(f"<!-- {table.__name__} -->\n")[2].partition("<!-- end -->")[0]

    assert part.splitlines()[2:] == [f"{line} |" for line in table(capsys)]


def commands(page: str) -> list[str]:
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith("mae ")]


@pytest.mark.parametrize(
    "line", [c for page in ("cluster.md", "scaling.md") for c in commands(page) if "plan" in c]
)
def test_the_plans_shown_run(line: str) -> None:
    assert main(shlex.split(line, comments=True)[1:]) == 0


@pytest.mark.parametrize("line", [c for c in commands("cluster.md") if "--slurm" in c])
def test_the_jobs_shown_have_a_script(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*shlex.split(line, comments=True)[1:], "--slurm-print"]) == 0

    assert "#SBATCH --gpus-per-node=8\n" in capsys.readouterr().out
