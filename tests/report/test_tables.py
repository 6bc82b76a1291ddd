"""Every result is printed by one printer: values for JSON, and a table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from mae.report.tables import Report, align, report_of, value_rows


class Inner(NamedTuple):
    name: str
    size: tuple[int, int]


class Result(NamedTuple):
    """A result whose field `values` is a number, not a method."""

    path: Path
    values: int
    loss: float
    parts: tuple[Inner, ...]


class Own(NamedTuple):
    same: bool

    def values(self) -> dict[str, Any]:
        return {"same": self.same, "inner": Inner("a", (1, 2))}

    def rows(self) -> list[tuple[str, ...]]:
        return [("verdict", "the same")]

    @property
    def exit_code(self) -> int:
        return 3


def test_named_tuples_are_values_at_every_depth_and_nan_is_none() -> None:
    result = Result(Path("run"), 5, math.nan, (Inner("a", (3, 4)),))

    assert report_of(result).values == {
        "path": Path("run"),
        "values": 5,
        "loss": None,
        "parts": [{"name": "a", "size": [3, 4]}],
    }
    assert report_of({"inner": Inner("a", (1, 2))}).values["inner"]["size"] == [1, 2]
    assert report_of(Report({"inner": Inner("a", (1, 2))}, [])).values["inner"]["name"] == "a"


def test_a_class_may_define_values_rows_and_exit_code() -> None:
    report = report_of(Own(same=True))

    assert report.values == {"same": True, "inner": {"name": "a", "size": [1, 2]}}
    assert (list(report.rows), report.exit_code) == ([("verdict", "the same")], 3)
    assert report_of({"a": 1}).exit_code == 0


def test_a_table_has_a_row_per_value_with_its_unit() -> None:
    values = {
        "run": Path("runs/a"),
        "top1": 0.81234,
        "top1_spread": 0.005,
        "top5": None,
        "loss": 0.123456,
        "loss_spread": 0.0,
        "train_images": 12345,
        "resumed": False,
        "bytes": 12_345_678,
        "eager_seconds": 0.01234,
        "size": [224, 160],
        "psnr": {"a.png": 20.123, "b.png": 7.0},
        "unreadable": [],
        "notes": ["one", "two"],
    }

    assert list(value_rows(values)) == [
        ("run", "runs/a"),
        ("top1", "81.23 % ± 0.50 %"),
        ("loss", "0.1235"),
        ("train images", "12,345"),
        ("resumed", "no"),
        ("bytes", "12.3 MB"),
        ("eager seconds", "0.0123 s"),
        ("size", "224 160"),
        ("psnr a.png", "20.1 dB"),
        ("psnr b.png", "7.0 dB"),
        ("notes", "one"),
        ("", "two"),
    ]


def test_columns_are_aligned_and_a_row_of_one_cell_is_a_line() -> None:
    rows = [("a", "b", ""), ("a line longer than any column",), ("ccc", "d")]

    assert align(rows) == "a    b\na line longer than any column\nccc  d"
