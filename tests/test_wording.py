"""How numbers and nouns are put into words."""

import pytest

from bncheck.wording import count


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (1, "pass", "1 pass"),
        (2, "pass", "2 passes"),
        (0, "batch", "0 batches"),
        (3, "entry", "3 entries"),
        (2, "day", "2 days"),
        (2, "statistics", "2 statistics"),
        (2, "index", "2 indexes"),
        (1200, "layer", "1,200 layers"),
        (2, "other message", "2 other messages"),
    ],
)
def test_a_noun_follows_its_number(number: int, noun: str, expected: str) -> None:
    assert expected == count(number, noun)
