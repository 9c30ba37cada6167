"""TorchScript archives (`torch.jit.save`, and `.ptl` for mobile): a zip file with modules, tensors and code.

data.pkl holds the tree of modules with parameters, buffers and, of scripted modules, `training`. eps, momentum and
the rest stand in the code: as constants of a scripted class, and in the calls of batch_norm. A call is that of a layer
if the statistics it is given are that layer's. A traced call has its mode as a constant, which eval() does not change.
Where the sources contradict each other, or a call has no layer, a setting stays unknown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.zip_archive import LOCAL_HEADER, LOCAL_MAGIC, open_archive
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bncheck.checkpoints.sources import Source

FORMAT = "TorchScript"
FIRST_STORAGE = re.compile(rb"[^/]+/data/0")


def recognises(source: Source) -> bool:
    """A zip file with the entries of TorchScript."""
    if source.size < LOCAL_HEADER.size or source.read(0, 4) != LOCAL_MAGIC:
        return False
    try:
        names = open_archive(source).entries
    except UnreadableError:
        # It breaks off before its table of contents, and must not be passed over. Storages come first, in other
        # zip files of torch the pickle.
        return bool(FIRST_STORAGE.match(source.read(LOCAL_HEADER.size, min(source.size - LOCAL_HEADER.size, 256))))
    return bool(root_of(names) or old_root_of(names))


def root_of(names: Iterable[str]) -> str:
    """The folder with data.pkl and constants.pkl, with a slash at its end; "" where there is not exactly one."""
    known = set(names)
    roots = [name.removesuffix("constants.pkl") for name in known if name.endswith("/constants.pkl")]
    roots = [root for root in roots if root.count("/") == 1 and f"{root}data.pkl" in known]
    return roots[0] if len(roots) == 1 else ""


def old_root_of(names: Iterable[str]) -> str:
    """The folder of an archive that torch before 1.4 wrote: modules in JSON beside their code."""
    known = set(names)
    roots = [name.removesuffix("model.json") for name in known if name.endswith("/model.json") and name.count("/") == 1]
    return roots[0] if roots and any(name.startswith(f"{roots[0]}code/") for name in known) else ""


def read(source: Source) -> Checkpoint:
    """The checkpoint in a TorchScript archive.

    Raises:
        UnreadableError: the file is damaged.
        UnsupportedError: torch before 1.4 wrote it.
    """
    archive = open_archive(source)
    root = root_of(archive.entries)
    if not root:
        raise UnsupportedError(
            f"{source.name} is a TorchScript archive of torch before 1.4, which is not read",
            "Load it with torch.jit.load of torch 1.4 or later, and save it again.",
        )
    from bncheck.checkpoints.formats.torchscript.reader import contents_of  # files of other formats need none of it

    groups, references, notes = contents_of(archive, root)
    return Checkpoint(source.name, FORMAT, groups, references, notes=notes)
