"""The sources that docs/data.md shows do what it says, where their libraries are installed."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae.data.decoding.decode import decode
from mae.data.survey import survey
from tests.images import encoded, image

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def example(name: str) -> Any:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": __name__}
    exec(next(block for block in blocks if f"class {name}:" in block), names)
    return names[name]


def test_an_object_store_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    images = [encoded(image(20, 31, seed=seed), "PNG") for seed in range(3)]
    for number, content in enumerate(images):
        with fsspec.open(f"memory://images/{number}.png", "wb") as file:
            file.write(content)
    StoredImages = example("StoredImages")
    monkeypatch.setitem(globals(), "StoredImages", StoredImages)

    source = pickle.loads(pickle.dumps(StoredImages("memory://images/*.png")))

    assert [source.read(index) for index in range(len(source))] == images
    assert source.name(2).endswith("images/2.png") and len(source.fingerprint()) == 64
    assert survey(source) == ("uint8", 3)


def test_a_hub_dataset_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    images = [image(20, 31, seed=seed) for seed in range(3)]
    dataset = datasets.Dataset.from_dict(
        {"image": images}, features=datasets.Features({"image": datasets.Image()})
    )

    source = example("HubImages")(dataset)

    kind = survey(source)
    assert len(source) == 3 and source.fingerprint()
    assert np.array_equal(decode(source.read(2), kind=kind), np.asarray(images[2]))
    assert io.BytesIO(source.read(0)).read(4) == b"\x89PNG"
