"""JSON, with bounds on what it may hold and without repeated keys."""

from __future__ import annotations

from typing import Any

from bncheck.errors import DAMAGED_HINT, UnreadableError

# Lists and tables: a header of safetensors has three for each tensor. Empty ones take many times more memory than text.
MAX_BRACKETS = 1_000_000


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object; UnreadableError for anything else."""
    import json

    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:
        raise UnreadableError(f"{name} has a header of more than {MAX_BRACKETS:,} parts", "Check what the file holds.")
    try:
        parsed = json.loads(data, object_pairs_hook=without_repetition)
    except (ValueError, RecursionError):
        raise UnreadableError(f"{name} has a header that is not proper JSON", DAMAGED_HINT) from None
    if not isinstance(parsed, dict):
        raise UnreadableError(f"{name} has a header that is not a JSON object", DAMAGED_HINT)
    return parsed


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of the pairs. A key that stands twice is refused: two readers could see two different tensors."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made
