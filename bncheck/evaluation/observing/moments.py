"""Mean and variance of what enters each BatchNorm layer, exact, over data of any size.

A pass over the data in eval mode gives, for each channel, the mean and the variance that running statistics of this
data would have. Only numbers per channel are kept; an activation is read while its layer runs and never copied whole.

The numbers equal those of float64 on the whole data to 1e-6 relative, also where the mean is 10,000 times the standard
deviation: of each channel of each image a pivot is subtracted before anything is squared, and images
are merged in float64.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    Channels = npt.NDArray[np.float64]

# Elements of an activation that are read at once on a CPU: 2 MiB in float32. The piece and its deviations from the mean
# are read four times, and so small they stay in the caches; much smaller pieces cost more in calls than they save.
# One such piece for each thread, as each core has a cache of its own.
PIECE = 1 << 19
# Elsewhere each call is a kernel launch, so pieces are large: 256 MiB in float32.
PIECE_OF_ACCELERATOR = 1 << 26
# Means of single images that are held at once, as images times channels: at most 8 MiB in float64, six times over.
# Only inputs with few positions and very many images reach it (point clouds: each point is an image of one position).
IMAGE_MEANS = 1 << 20
# float64 exists here. On other devices (mps has none) the sums of single images move to the CPU to be merged.
DEVICES_WITH_FLOAT64 = frozenset({"cpu", "cuda"})


@dataclass(slots=True)
class Merged:
    """Count, mean, and sum of squared deviations from the mean, of all samples so far; per channel."""

    count: int = 0
    mean: Tensor | None = None
    squares: Tensor | None = None

    def merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Adds a set of samples by its own moments: Chan, Golub and LeVeque 1979, in float64."""
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean, squares
            return
        if mean.device != self.mean.device:  # DataParallel runs replicas on several
            mean, squares = mean.to(self.mean.device), squares.to(self.mean.device)
        total = self.count + count
        apart = mean - self.mean
        self.squares = (self.squares + squares).addcmul_(apart, apart, value=self.count * count / total)
        self.mean = torch.add(self.mean, apart, alpha=count / total)
        self.count = total


class ChannelMoments:
    """Moments of the inputs of one layer, per channel: each property is a float64 array of shape (C,).

    Before the first input (`count` is 0) every array has shape (0,). Channels that saw NaN or infinity hold either.
    Deviations above 1e19, whose squares float32 cannot hold, give an infinite variance; below 1e-17 they count as zero.
    """

    def __init__(self) -> None:
        self.calls = 0
        """How often the layer was called, with any input."""
        self.batches = 0
        """How many inputs were measured: one per call, so more than one per forward where a layer is used twice."""
        self.batches_of_one = 0
        """How many of them had one sample per channel, whose variance is not defined."""
        self._positions = Merged()
        self._images = Merged()
        self._within: Tensor | None = None
        self._lock = threading.Lock()  # DataParallel calls its replicas in threads

    def add(self, inputs: Tensor) -> None:
        """Adds one input of a BatchNorm: (N, C) or (N, C, positions in any number of dimensions), of any float dtype.

        An input without samples adds nothing.
        """
        with torch.inference_mode(), self._lock:
            if not inputs.numel():
                return
            self.batches += 1
            images, channels = inputs.shape[:2]
            positions = inputs[0, 0].numel()
            batch, of_images = Merged(), Merged()
            if positions == 1:  # rows of features: their positions are what the images of a convolution are
                mean, squares = moments_of_images(inputs.detach().reshape(1, images, channels), 1)
                batch.merge(images, mean[0], squares[0])
                of_images = batch
            else:
                for part in torch.split(inputs.detach(), max(1, IMAGE_MEANS // channels)):
                    means, squares = moments_of_images(*laid_out(part))
                    centre = means.mean(0)
                    spread = (means - centre).square_().sum(0)
                    batch.merge(len(means) * positions, centre, torch.add(squares.sum(0), spread, alpha=positions))
                    of_images.merge(len(means), centre, spread)
            assert batch.mean is not None
            assert batch.squares is not None
            assert of_images.mean is not None
            assert of_images.squares is not None
            self._images.merge(of_images.count, of_images.mean, of_images.squares)
            self._positions.merge(batch.count, batch.mean, batch.squares)
            if batch.count == 1:
                self.batches_of_one += 1
            elif self._within is None:
                self._within = batch.squares / (batch.count - 1)
            else:
                squares = batch.squares.to(self._within.device)
                self._within = torch.add(self._within, squares, alpha=1 / (batch.count - 1))

    @property
    def count(self) -> int:
        """Samples per channel: images times positions."""
        return self._positions.count

    @property
    def images(self) -> int:
        """Images, or rows of an input (N, C)."""
        return self._images.count

    @property
    def mean(self) -> Channels:
        """The mean of all samples."""
        return array(self._positions.mean)

    @property
    def variance(self) -> Channels:
        """The variance of all samples as one population (biased): the sum of squares divided by `count`."""
        return array(self._positions.squares) / max(1, self.count)

    @property
    def unbiased_variance(self) -> Channels:
        """The same divided by `count - 1`; NaN for a single sample."""
        return array(self._positions.squares) / (self.count - 1 if self.count > 1 else math.nan)

    @property
    def within_batch_variance(self) -> Channels:
        """The mean over the batches of their unbiased variances, which is what running_var follows in training.

        Every batch has the same weight, whatever its size, as in torch. Batches of one sample have no variance and are
        left out (torch refuses to train on them); with no others, the array has shape (0,).
        """
        batches = self.batches_with_variance
        return array(self._within) / max(1, batches)

    @property
    def batches_with_variance(self) -> int:
        """The number of batches that `within_batch_variance` averages."""
        return 0 if self._within is None else self.batches - self.batches_of_one

    @property
    def spread_of_images(self) -> Channels:
        """The standard deviation over the images (biased) of the mean of each image over its positions."""
        result: Channels = (array(self._images.squares) / max(1, self.images)) ** 0.5
        return result


def array(values: Tensor | None) -> Channels:
    return (torch.empty(0, dtype=torch.float64) if values is None else values.cpu()).numpy().copy()


def laid_out(inputs: Tensor) -> tuple[Tensor, int]:
    """The numbers with all positions in one dimension, (N, C, positions) or (N, positions, C), and which that is.

    No number is copied where the layout is contiguous or channels_last: memory is read in its order.
    """
    if inputs.stride(1) == 1 and inputs.size(1) > 1:  # channels_last
        return inputs.movedim(1, -1).flatten(1, -2), 1
    return inputs.flatten(2), 2


def moments_of_images(inputs: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The mean of each image over its positions, and the sum of the squared deviations from it; (N, C) in float64.

    Args:
        inputs: three dimensions, as `laid_out` gives them.
        axis: the dimension of the positions.
    """
    whole = Merged()
    # A channel whose positions lie together is read at one go. Where channels lie together, all are read at once, and
    # the positions are what can be cut.
    length = inputs.size(axis) if axis == 2 else max(1, largest_piece(inputs) // inputs.size(2))
    for part in torch.split(inputs, length, axis):
        whole.merge(part.size(axis), *moments_of_part(part, axis))
    assert whole.mean is not None
    assert whole.squares is not None
    return whole.mean, whole.squares


def moments_of_part(inputs: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The same, of images that are read a piece at a time.

    A pivot is subtracted first, so that squares stay exact. It is the mean of the first quarter of the positions, which
    is at most sqrt(3) standard deviations of the whole away from the mean, whatever the numbers are: a part of the
    fraction f lies within sqrt((1 - f) / f). So at most a factor of 4 is lost to cancellation. What the pivot lacks is
    the mean of the deviations, and is added in float64.
    """
    positions = inputs.size(axis)
    precision = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    sums = inputs.new_empty((3, inputs.size(0), inputs.size(3 - axis)), dtype=precision)
    workspace: Tensor | None = None
    for rows, columns in pieces(inputs, axis):
        piece = inputs[rows, columns] if axis == 2 else inputs[rows]
        pivot, total, squares = sums[:, rows, columns].unsqueeze(axis + 1)
        if workspace is None or workspace.shape != piece.shape:
            workspace = torch.empty_like(piece, dtype=precision)
        if piece.dtype == precision:
            torch.mean(piece.narrow(axis, 0, -(-positions // 4)), axis, keepdim=True, out=pivot)
            deviations = torch.sub(piece, pivot, out=workspace)
        else:
            deviations = workspace.copy_(piece)
            torch.mean(deviations.narrow(axis, 0, -(-positions // 4)), axis, keepdim=True, out=pivot)
            deviations.sub_(pivot)
        torch.sum(deviations, axis, keepdim=True, out=total)
        torch.sum(deviations.square_(), axis, keepdim=True, out=squares)
    if sums.device.type not in DEVICES_WITH_FLOAT64:
        sums = sums.cpu()
    pivot, total, squares = sums.double()
    # Where all deviations are alike, rounding may leave less than nothing.
    squares = torch.addcmul(squares, total, total, value=-1 / positions).clamp_min_(0)
    return torch.add(pivot, total, alpha=1 / positions), squares


def largest_piece(inputs: Tensor) -> int:
    return PIECE * torch.get_num_threads() if inputs.device.type == "cpu" else PIECE_OF_ACCELERATOR


def pieces(inputs: Tensor, axis: int) -> Iterator[tuple[slice, slice]]:
    """Cuts an input into pieces for the caches: some images, or some channels of one image where these lie apart."""
    channels, positions = inputs.size(3 - axis), inputs.size(axis)
    width = channels if axis == 1 else min(channels, max(1, largest_piece(inputs) // positions))
    height = max(1, largest_piece(inputs) // (width * positions)) if width == channels else 1
    for first in range(0, inputs.size(0), height):
        for channel in range(0, channels, width):
            yield slice(first, first + height), slice(channel, channel + width)


@contextlib.contextmanager
def watching(
    layers: Mapping[str, nn.Module], into: dict[str, ChannelMoments] | None = None
) -> Iterator[dict[str, ChannelMoments]]:
    """Measures the inputs of the layers during every forward inside, or adds to the moments that are given.

    Yields the moments by the names of the layers; a layer that is never called keeps `calls` 0. An input that is not a
    float tensor with the layer's channels in its second dimension counts as a call without a batch.

    The hooks see what enters a layer after any hooks of its own. Modules that torch.compile compiled run as they are
    written meanwhile: compiled code takes no notice of new hooks.
    """
    moments = {name: ChannelMoments() for name in layers} if into is None else into
    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(measure_with(moments[name]), with_kwargs=True))
        with uncompiled():
            yield moments
    finally:
        for handle in handles:
            handle.remove()


def measure_with(moments: ChannelMoments) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        moments.calls += 1
        inputs = next(iter((*args, *kwargs.values())), None)
        if isinstance(inputs, torch.Tensor) and is_measurable(inputs, layer):
            moments.add(inputs)

    return hook


def is_measurable(inputs: Tensor, layer: nn.Module) -> bool:
    if inputs.layout != torch.strided or not inputs.is_floating_point() or inputs.dim() < 2:
        return False
    known = next(
        (t for t in (layer._buffers.get("running_mean"), layer._parameters.get("weight")) if t is not None), None
    )
    return known is None or known.numel() == inputs.size(1)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled modules run eagerly inside, where torch can do that (2.6 and later) and anything may be compiled."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return contextlib.nullcontext()
