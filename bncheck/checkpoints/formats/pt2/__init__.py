"""torch.export archives (`.pt2`): a graph as JSON, and one entry for each weight.

In a graph, a BatchNorm is a call of an operator with its settings as constants: training, momentum and eps. So the mode
is known, and eval() does not change it. What the call normalises tells a BatchNorm from what only uses its
operator: weight standardisation, and an InstanceNorm that was lowered to it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.zip_archive import LOCAL_HEADER, LOCAL_MAGIC, open_archive
from bncheck.checkpoints.formats.pt2.archive import CONSTANTS, MODELS, WEIGHTS, Archive, is_mark
from bncheck.errors import UnreadableError
from bncheck.subjects.checkpoint import Checkpoint

if TYPE_CHECKING:
    from bncheck.checkpoints.sources import Source

FORMAT = "torch.export"


def recognises(source: Source) -> bool:
    """A zip file with the mark of an export archive."""
    first = first_entry(source)
    if not first or first.endswith("data.pkl"):
        return False  # torch.save writes that first, and its table of contents need not be read twice
    if f"/{WEIGHTS}" in first or is_mark(first):
        return True  # even if the file breaks off
    try:
        return any(map(is_mark, open_archive(source).entries))
    except UnreadableError:
        return False


def first_entry(source: Source) -> str:
    """The name of the first entry of a zip file, empty for anything else."""
    if source.size < LOCAL_HEADER.size:
        return ""
    header = LOCAL_HEADER.unpack(source.read(0, LOCAL_HEADER.size))
    length = min(header[9], source.size - LOCAL_HEADER.size)
    return source.read(LOCAL_HEADER.size, length).decode("utf-8", "replace") if header[0] == LOCAL_MAGIC else ""


def read(source: Source) -> Checkpoint:
    """The exported programs in an archive, a group for each.

    Raises:
        UnreadableError: the archive is damaged or contradicts itself.
        UnsupportedError: it was written by an older torch, or holds compiled code and no graph.
    """
    from bncheck.checkpoints.formats.pt2.layers import (
        connections_of,
        group_of,
    )  # files of other formats need none of it

    archive = Archive(open_archive(source))
    models = archive.models()
    groups = []
    facts: dict[str, str | int | float] = {}
    for model in models:
        program = archive.json(f"{MODELS}{model}.json")
        if isinstance(program.get("torch_version"), str):
            facts["torch_version"] = program["torch_version"]
        tensors = archive.tensors(WEIGHTS, f"{model}_weights_config.json")
        tensors |= archive.tensors(CONSTANTS, f"{model}_constants_config.json")
        group = group_of(model if len(models) > 1 else "", program, tensors, source.name)
        groups.append(replace(group, connections=partial(connections_of, archive, model, tensors)))
    return Checkpoint(source.name, FORMAT, tuple(groups), tuple(sorted(archive.globals())), facts)
