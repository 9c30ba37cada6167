"""ONNX models: a graph whose BatchNormalization nodes have their mode and settings as attributes.

An ONNX file is one message of protobuf, weights included. To read only what is needed, the outermost messages are
walked here: the package onnx parses what is left of the model without the bytes of its weights, which are read later
from their places. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.protobuf import BYTES, NUMBER, Window, fields
from bncheck.checkpoints.formats.onnx_model.skeleton import GRAPH
from bncheck.errors import UnreadableError
from bncheck.subjects.checkpoint import Checkpoint

if TYPE_CHECKING:
    from bncheck.checkpoints.sources import Source

FORMAT = "ONNX"
MOMENTUM_NOTE = "ONNX's momentum is the weight of the old statistics; what is shown is 1 - momentum, as PyTorch has it"
# What the first fields of a model are, and how they are written.
IR_VERSION = 1
MODEL_FIELDS = {
    1: NUMBER, 2: BYTES, 3: BYTES, 4: BYTES, 5: NUMBER, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES,
    25: BYTES, 26: BYTES,
}  # fmt: skip
GRAPH_FIELDS = {1, 2, 5, 10, 11, 12, 13, 14, 15, 16}
# The versions of the format count up from 1; there were 13 in nine years.
MAX_IR_VERSION = 1000
MAX_FIELDS_BEFORE_GRAPH = 64


def recognises(source: Source) -> bool:
    """A message that starts with the version of the format and has a graph."""
    try:
        for place, field in enumerate(fields(Window(source), 0, source.size)):
            if MODEL_FIELDS.get(field.number) != field.wire or place > MAX_FIELDS_BEFORE_GRAPH:
                return False
            if place == 0 and not (field.number == IR_VERSION and 0 < field.value <= MAX_IR_VERSION):
                return False
            if field.number == GRAPH:  # of a truncated model, too
                first = source.read(field.start, 1)[0] if field.start < source.size else 0
                return first >> 3 in GRAPH_FIELDS and first & 7 == BYTES
            if field.end > source.size:
                return False
    except UnreadableError:
        return False
    return False


def read(source: Source) -> Checkpoint:
    """The graph of a model, as one group. What is not weights is read as a whole, up to 256 MiB.

    Raises:
        UnreadableError: the model is damaged, or a file with its weights is missing or truncated.
        UnsupportedError: the package onnx is not installed, or the graph is larger than any real one.
    """
    from bncheck.checkpoints.formats.onnx_model.layers import group_of  # files of other formats need none of it
    from bncheck.checkpoints.formats.onnx_model.weights import parsed

    model, weights = parsed(source)
    group = group_of(source, model, weights)
    facts = {"producer": f"{model.producer_name} {model.producer_version}".strip()} if model.producer_name else {}
    return Checkpoint(source.name, FORMAT, (group,), facts=facts, notes=(MOMENTUM_NOTE,) if group.layers else ())
