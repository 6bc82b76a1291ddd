"""The benchmark behind the recipe `folder`: records, sets and candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.recipes import CANDIDATES, LARGER, Results, textures

from mae.recipes import folder
from mae.recipes.folder import Facts, choose


def test_finished_work_is_kept_and_a_line_cut_short_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    calls = []

    def make() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    first = Results(path)
    assert first.get(("a", 3), make)["value"] == first.get(("a", 3), make)["value"] == 1
    first.get(("b",), make)
    path.write_text(path.read_text()[:-4])
    again = Results(path)
    assert again.get(("a", 3), make)["value"] == 1
    assert again.get(("b",), make)["value"] == 3
    assert [*Results(path).records] == ["a 3", "b"]


def test_the_synthetic_set_has_six_channels_of_16_bits_and_classes_alike_in_mean() -> None:
    source = textures(edge=16, classes=4).parts["test"]
    images = np.stack([source.read(i) for i in range(len(source))])

    assert images.shape == (400, 16, 16, 6) and images.dtype == np.uint16
    assert source.labels is not None
    means = [images[source.labels == c].mean() for c in range(4)]
    assert max(means) - min(means) < 0.05 * images.std()


def test_the_table_holds_candidates_that_were_measured() -> None:
    facts = Facts(images=3_068, side=96, channels=3, device="cpu", minutes=3)

    for name, row in (("96x4", folder.SHORT), ("192x6", folder.SMALL)):
        minutes = None if row is folder.SMALL else 3
        ours, tried = choose(facts._replace(minutes=minutes)).config, CANDIDATES[name].config(96)
        assert (ours.model, ours.objective, ours.batch) == (
            tried.model,
            tried.objective,
            tried.batch,
        )
        assert (ours.optim.name, ours.optim.lr) == (tried.optim.name, tried.optim.lr)
        assert ours.augment == tried.augment
    assert CANDIDATES["192x6"].width == LARGER[0]
