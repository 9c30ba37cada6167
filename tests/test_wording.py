"""How numbers and nouns are put into words."""

import re
from pathlib import Path

import pytest

from bncheck.wording import channels, count, percent

PACKAGE = Path(__file__).parent.parent / "bncheck"


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


@pytest.mark.parametrize(
    ("indices", "total", "expected"),
    [
        ([3], 64, "channel 3 of 64"),
        ([3, 7], 64, "channels 3, 7 of 64"),
        ([1, 2, 3, 4], 1200, "channels 1, 2, 3 and 1 more of 1,200"),
        ([0, 1], 2, "all 2 channels"),
        ([0], 1, "its only channel"),
    ],
)
def test_channels_are_named(indices: list[int], total: int, expected: str) -> None:
    assert expected == channels(indices, total)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_plural_is_made_by_hand(path: Path) -> None:
    """`{n} batch{'es' * (n != 1)}` and its like: `count` and `plural` know the words."""
    by_hand = re.findall(r"""['"]e?s['"] ?(?:\*|if) ?""", path.read_text("utf-8"))
    assert not by_hand, f"{path} makes a plural by hand: use count or plural of bncheck/wording.py"


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "0%"), (0.0028, "0.3%"), (0.0999, "10.0%"), (0.1, "10%"), (0.445, "44%"), (1.0, "100%")],
)
def test_small_shares_have_a_digit_more(share: float, expected: str) -> None:
    assert expected == percent(share)
