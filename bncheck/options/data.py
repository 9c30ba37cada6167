"""What a model is run on, and how images become numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bncheck.options.option import Counted, Options, Panel, WrongOption, option

NUMBERS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]}
SIZE = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}]}

Size = int | str | tuple[int, int]
Numbers = str | float | Sequence[float]


@dataclass(kw_only=True, eq=False, repr=False)
class Samples(Options):
    """What the model is run on."""

    data: Any = option(
        None,
        "Folder or file of images or arrays, or module:callable.",
        Panel.DATA,
        metavar="DIR",
        counted=Counted.DATA,
        schema={"type": "string"},
    )


@dataclass(kw_only=True, eq=False, repr=False)
class DataOptions(Options):
    """How samples are read."""

    batch_size: int = option(32, "Samples in a batch.", Panel.DATA, metavar="N", least=1)
    limit: int | None = option(None, "Read this many samples, spread over all.", Panel.DATA, metavar="N", least=1)
    size: Size | None = option(None, "Size of the image that the model sees.", Panel.DATA, metavar="HxW", schema=SIZE)
    resize: int | None = option(None, "Shorter side before --size is cut out.", Panel.DATA, metavar="N", least=1)
    mean: Numbers | None = option(
        None, "Subtracted from pixels between 0 and 1.", Panel.DATA, metavar="M,M,M", schema=NUMBERS
    )
    std: Numbers | None = option(None, "What is left is divided by these.", Panel.DATA, metavar="S,S,S", schema=NUMBERS)
    grayscale: bool = option(False, "Images of one channel.", Panel.DATA)
    channels_last: bool = option(False, "Images of shape (N, H, W, C).", Panel.DATA)
    input_key: Sequence[str] = option((), "Array or key that the model takes; may repeat.", Panel.DATA, metavar="KEY")
    workers: int = option(2, "Threads that decode images ahead.", Panel.DATA, metavar="N", least=0)
    skip_unreadable: bool = option(False, "Leave out unreadable images, and count them.", Panel.DATA)

    def check(self) -> None:
        super().check()
        _ = self.height_and_width, self.means, self.stds

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """`size` in pixels: 224, "224", "224x160" or (224, 160).

        Raises:
            WrongOption: it is none of these.
        """
        return None if self.size is None else height_and_width(self.size)

    @property
    def means(self) -> tuple[float, ...] | None:
        """`mean`, a number for all channels or one for each."""
        return None if self.mean is None else numbers("mean", self.mean)

    @property
    def stds(self) -> tuple[float, ...] | None:
        """`std`, a number for all channels or one for each."""
        return None if self.std is None else numbers("std", self.std)


def height_and_width(size: object) -> tuple[int, int]:
    parts: Sequence[Any] = size if isinstance(size, (tuple, list)) else str(size).lower().split("x")
    if len(parts) not in (1, 2) or not all(is_length(part) for part in parts):
        raise WrongOption("size", size, "is no size", "Write 224, or 224x160 for height and width.")
    return int(parts[0]), int(parts[-1])


def is_length(part: object) -> bool:
    """Whether a number, or a text of one, counts pixels."""
    if isinstance(part, str):
        return part.isdecimal() and int(part) > 0
    return isinstance(part, int) and not isinstance(part, bool) and part > 0


def numbers(name: str, value: object) -> tuple[float, ...]:
    parts: Iterable[Any] = value.split(",") if isinstance(value, str) else [value]
    if isinstance(value, Iterable) and not isinstance(value, str):
        parts = value
    try:
        return tuple(map(float, parts))
    except (ValueError, TypeError):
        hint = "Write 0.485,0.456,0.406, or one number for all channels."
        raise WrongOption(name, value, "are no numbers", hint) from None
