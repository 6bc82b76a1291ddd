from html.parser import HTMLParser

import numpy as np

from mae.report.confusion import (
    DARK,
    LIGHT,
    confusion_image,
    evaluation_page,
    worst_mistakes,
)

COUNTS = np.array([[4, 0, 1], [3, 0, 1], [0, 0, 0]])
NAMES = ("ant", "b<e>e", "cat")


def test_the_image_has_a_cell_a_pair_darker_for_a_larger_share() -> None:
    image = np.asarray(confusion_image(COUNTS))

    assert image.shape == (600, 600, 3)
    shown = image[100::200, 100::200].astype(int)
    assert (shown[2] == LIGHT).all() and (shown[0, 1] == LIGHT).all()
    halfway = np.round(np.array(LIGHT) + 0.5 * (np.array(DARK) - np.array(LIGHT)))
    assert np.abs(shown[1, 2] - halfway).max() <= 1  # a quarter of the row, by its root
    assert shown[0, 0].sum() < shown[1, 0].sum() < shown[1, 2].sum()


def test_many_classes_are_a_pixel_each() -> None:
    assert confusion_image(np.eye(1000, dtype=np.int64)).size == (1000, 1000)


def test_mistakes_come_most_frequent_first_and_right_ones_never() -> None:
    found = worst_mistakes(COUNTS, NAMES, most=2)

    assert [tuple(m) for m in found] == [("b<e>e", "ant", 3, 0.75), ("ant", "cat", 1, 0.2)]
    assert worst_mistakes(np.eye(3, dtype=np.int64), NAMES, most=2) == []


def test_the_page_tells_every_class_and_needs_no_other_file() -> None:
    page = evaluation_page("a on b", {"top-1": "50.0%"}, COUNTS, NAMES).decode()

    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(v or "" for k, v in attrs if k in ("src", "href"))

    Links().feed(page)
    assert links == []
    assert "b&lt;e&gt;e" in page and "<e>" not in page and "no image" in page and "50.0%" in page
