"""`torch.save` files before torch 1.6: five pickles in a row, then the storages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.errors import UnsupportedError

if TYPE_CHECKING:
    from bncheck.checkpoints.source import Source
    from bncheck.subjects import Checkpoint

FORMAT = "torch.save, legacy"
# torch.serialization.MAGIC_NUMBER as a pickle holds it: LONG1 of ten bytes, little-endian
MAGIC = bytes([0x8A, 10]) + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


def recognises(source: Source) -> bool:
    """A pickle of torch's magic number, after the opcode that names the protocol."""
    return MAGIC in source.read(0, min(source.size, 2 + len(MAGIC)))


def read(source: Source) -> Checkpoint:
    raise UnsupportedError(
        f"{source.name} is in the format that torch.save wrote before torch 1.6, which is not read yet",
        "Save it again: torch.save(torch.load(path, map_location='cpu'), new_path).",
    )
