"""Whether bytes that are to be written belong to something else of the checkpoint as well."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.limits import limits_for
from bncheck.checkpoints.encodings.places import StoredTensor, View
from bncheck.checkpoints.encodings.tensors import DTYPES
from bncheck.checkpoints.formats import format_of, rewritable
from bncheck.checkpoints.rewriting.patches import COPY_HINT, Write, by_container
from bncheck.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.checkpoint import Checkpoint
    from bncheck.subjects.layer import Array

# A view of more elements, whose numbers do not lie together, is taken for one that fills what it spans.
LARGEST_EXACT = 2**20


def check_sharing(writes: Sequence[Write], checkpoint: Checkpoint, files: Iterable[Source]) -> None:
    """Raises UnsupportedError where a byte to be written belongs to a tensor that is not to be written.

    Looked at are the tensors of all groups, and every other tensor and storage in the files. The same tensor under
    two names is fine where both get the same numbers.
    """
    writes_into = by_container(writes)
    places = {container: bytes_of(into) for container, into in writes_into.items()}
    planned = Counter(write.view.key for write in writes)

    def check(view: View) -> None:
        container = view.region.container
        if touches(view, places[container]):
            label = next(write.label for write in writes_into[container] if overlap(write.view, view))
            raise UnsupportedError(f"{label} shares its bytes with another tensor of the file", COPY_HINT)

    named = [view for view in named_views(checkpoint) if view.region.container in places]
    times = Counter(view.key for view in named)
    for view in named:
        if times[view.key] > planned[view.key]:
            check(view)
    met: Counter[tuple[object, ...]] = Counter()
    for view in (view for file in files for view in views_of(file) if view.region.container in places):
        met[view.key] += 1
        if met[view.key] > planned[view.key]:
            check(view)


def named_views(checkpoint: Checkpoint) -> Iterator[View]:
    """The tensors of the groups, as far as the files hold their numbers as they are."""
    for group in checkpoint.groups:
        for tensor in group.tensors.values():
            if isinstance(tensor, StoredTensor):
                yield tensor.view


def views_of(file: Source) -> Iterator[View]:
    """Every tensor and bare storage of a file that may share bytes with others."""
    format_ = rewritable(format_of(file))
    if format_:
        with limits_for(file.name):
            yield from format_.views(file)


def bytes_of(writes: Sequence[Write]) -> Array:
    """The places of all bytes that are written, sorted."""
    import numpy as np

    places: Array = np.sort(np.concatenate([write.view.positions().reshape(-1) for write in writes]))
    return places


def overlap(first: View, second: View) -> bool:
    return first.first < second.end and second.first < first.end


def touches(view: View, places: Array) -> bool:
    """Whether a view has one of the bytes, which are sorted."""
    import numpy as np

    low, high = np.searchsorted(places, (view.first, view.end))
    if low == high or not view.size:
        return False
    if view.size > LARGEST_EXACT or (view.end - view.first) == view.size * DTYPES[view.dtype][0]:
        return True
    return bool(np.isin(places[low:high], view.positions()).any())
