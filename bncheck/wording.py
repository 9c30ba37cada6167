"""How numbers, channels and lists of names are put into words, everywhere alike."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FEW = 3
LONGEST_NAME = 200
# Channels that a finding lists; it counts all of them.
MOST_LISTED = 1000


def count(number: int, noun: str) -> str:
    """`1 layer`, `1,200 layers`, `2 passes`."""
    return f"{number:,} {plural(noun, number)}"


def plural(noun: str, number: int) -> str:
    """The noun as it stands behind the number: `pass`, `passes`, `entries`, `statistics`."""
    if number == 1 or noun.endswith("ics"):
        return noun
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def number(value: float) -> str:
    """Four significant digits, no trailing zeros; `nan` and `inf` as they are."""
    return f"{value:.4g}"


def percent(share: float) -> str:
    """`44%`; a small share with a digit more, `0.3%`."""
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def quoted(name: str) -> str:
    """A name from a file in quotes, shortened if it is longer than any real one."""
    return repr(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...")


def few(names: Sequence[object], most: int = FEW) -> str:
    """`3, 7, 12 and 14 more`."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def channels(indices: Sequence[int], total: int) -> str:
    """`channel 3 of 64`, `channels 3, 7, 12 and 14 more of 64`, `all 64 channels`."""
    if len(indices) == total:
        return f"all {count(total, 'channel')}" if total > 1 else "its only channel"
    return f"{plural('channel', len(indices))} {few(indices)} of {total:,}"


def nearest(name: str, known: Iterable[str], where: str) -> str:
    """`Did you mean dead-channels?`, or where the names that there are stand."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known ones: {where}."


def short(value: float, digits: int = 3) -> str:
    """A few significant digits; `1.2e4` rather than `1.2e+04`, since a column holds three of them."""
    return re.sub(r"e([+-])0*", lambda sign: "e" if sign[1] == "+" else "e-", f"{value:.{digits}g}")


def escaped(text: str) -> str:
    """Control characters, directional marks and lone surrogates spelled out; all else as it is."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )
