"""How an image becomes the numbers that a network was trained on, and who says so: the user or a configuration."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bncheck.errors import UnreadableError, UsageError
from bncheck.wording import few

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bncheck.options.data import DataOptions

HUGGING_FACE = "preprocessor_config.json"
TIMM = "config.json"
# Both are some 1 to 20 kB long; what is longer is something else.
LONGEST_CONFIG = 2**20
# Pixels of 8 bits, which Pillow gives, lie between 0 and this.
WHITE = 255.0
# Hugging Face writes Pillow's numbers.
BILINEAR = 2
RESAMPLING = {0: "nearest", 1: "lanczos", BILINEAR: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# transformers' ConvNextImageProcessor, which ResNet and RegNet use, cuts a center out only below this length.
CONVNEXT_WARPS_FROM = 384
# transformers' LevitImageProcessor resizes to 256/224 of the length that is configured.
LEVIT_RATIO = 256 / 224
# Steps of transformers' processors that are followed here. Another `do_...` that is on is reported as not followed.
FOLLOWED = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
NOT_FOLLOWED = ("rescale_offset", "longest_edge", "do_pad", "do_reduce_labels", "do_flip_channel_order")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From an 8-bit image to float32: resize, cut out the center, `(pixel / divisor - mean) / std`.

    Attributes:
        resize: length of the shorter side, or (height, width) whatever the proportions were; None leaves the image.
        crop: (height, width) cut out of the center, black where the image is smaller; None for all of it.
        interpolation: Pillow's name of the filter, in lower case.
        divisor: 255 gives pixels between 0 and 1.
        mean, std: one number for all channels, or one for each.
        grayscale: one channel instead of three.
        origin: who said so, by setting.
        not_followed: settings of a configuration that bncheck does not know how to follow.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    divisor: float = WHITE
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    grayscale: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)
    not_followed: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return 1 if self.grayscale else 3

    def describe(self) -> dict[str, Any]:
        """The settings in plain values, for the report."""
        described: dict[str, Any] = {
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "crop": list(self.crop) if self.crop else None,
            "interpolation": self.interpolation if self.resize is not None else None,
            "divisor": self.divisor,
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "from": dict(self.origin),
        }
        if self.not_followed:
            described["not_followed"] = list(self.not_followed)
        return described


def find_preprocessing(options: DataOptions, beside: Path | None) -> Preprocessing:
    """What the user gave; for the rest the configuration beside the checkpoint; for the rest pixels between 0 and 1.

    `--size` alone resizes to exactly that; `--resize` alone sets the shorter side and cuts out a square of that length;
    together the shorter side is set first, then `--size` is cut out of the center, as is usual with torchvision.

    Args:
        options: what the user gave.
        beside: a checkpoint, in whose folder a configuration may lie.

    Raises:
        UsageError: the options contradict each other.
        UnreadableError: the configuration is damaged.
    """
    size, mean, std = options.height_and_width, options.means, options.stds
    geometry = size is not None or options.resize is not None
    everything_given = geometry and mean is not None and std is not None
    configured = None if beside is None or everything_given else beside_checkpoint(beside)
    chosen = configured or Preprocessing(
        origin={"size": "not given: images as they are", "mean": "not given: pixels between 0 and 1, not normalised"}
    )
    origin = dict(chosen.origin)
    if geometry:
        resize, crop = given_geometry(size, options.resize)
        chosen = replace(chosen, resize=resize, crop=crop)
        origin["size"] = "options"
    if mean is not None or std is not None:
        chosen = replace(chosen, mean=chosen.mean if mean is None else mean, std=chosen.std if std is None else std)
        both = mean is not None and std is not None
        origin["mean"] = "options" if both or configured is None else f"options and {origin['mean']}"
    if options.grayscale:
        chosen = replace(chosen, grayscale=True)
    check_normalisation(chosen)
    return replace(chosen, origin=origin)


def given_geometry(size: tuple[int, int] | None, resize: int | None) -> tuple[int | tuple[int, int], Any]:
    if resize is None:
        assert size is not None
        return size, None
    if size is None:
        return resize, (resize, resize)
    if resize < max(size):
        raise UsageError(
            f"--size {size[0]}x{size[1]} cannot be cut out of images whose shorter side is --resize {resize}",
            "Give a --resize that is at least as large, or only --size.",
        )
    return resize, size


def check_normalisation(chosen: Preprocessing) -> None:
    for name, values in (("mean", chosen.mean), ("std", chosen.std)):
        if len(values) not in (1, chosen.channels):
            raise UsageError(
                f"--{name} has {len(values)} numbers for {'gray' if chosen.grayscale else 'RGB'} images",
                f"Give one for all channels{'' if chosen.grayscale else ', or three'}; see also --grayscale.",
            )
        if not all(math.isfinite(value) for value in values) or (name == "std" and min(values) <= 0):
            raise UsageError(f"--{name} {few(values)} normalises nothing", "Give finite numbers, --std above 0.")


def beside_checkpoint(checkpoint: Path) -> Preprocessing | None:
    """The preprocessing in the checkpoint's folder, by a Hugging Face processor or a timm configuration."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for name, understand in ((HUGGING_FACE, hugging_face), (TIMM, timm)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = load_config(path)
            understood = understand(config)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, OSError) as error:
            raise UnreadableError(
                f"{path} is no preprocessing that bncheck understands: {error}",
                "Repair it, or give --size (and --resize), --mean and --std instead.",
            ) from error
        if understood is not None:
            return replace(understood, origin={"size": name, "mean": name})
    return None


def load_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LONGEST_CONFIG:
        raise ValueError("it is too long")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise TypeError("it is no JSON object")
    return config


def hugging_face(config: dict[str, Any]) -> Preprocessing:
    """The settings of a transformers image processor.

    https://huggingface.co/docs/transformers/main_classes/image_processor
    """
    resize, crop = hugging_face_geometry(config)
    divisor = 1.0
    if config.get("do_rescale", True):
        factor = number(config.get("rescale_factor", 1 / WHITE))
        # Files hold 1/255 in decimals; dividing by the whole number gives the bits that training had.
        divisor = float(round(1 / factor)) if math.isclose(1 / factor, round(1 / factor)) else 1 / factor
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if config.get("do_normalize", True) and "image_mean" in config:
        mean, std = numbers(config["image_mean"]), numbers(config["image_std"])
        if config.get("include_top") and is_kind(config, "EfficientNet"):
            std = tuple(value * value for value in std)  # its processor divides by std a second time
    size = config.get("size")
    active = {key for key, value in config.items() if value and (key.startswith("do_") or key in NOT_FOLLOWED)}
    if isinstance(size, dict) and size.get("longest_edge"):
        active.add("longest_edge")
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=RESAMPLING[config.get("resample", BILINEAR)] if resize is not None else "bilinear",
        divisor=divisor,
        mean=mean,
        std=std,
        not_followed=tuple(sorted(active - FOLLOWED)),
    )


def hugging_face_geometry(config: dict[str, Any]) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """Resize and crop. A bare number is the shorter side where a center is cut out of it, and a square otherwise."""
    size = config.get("size")
    crops = bool(config.get("do_center_crop"))
    if isinstance(size, dict) and "shortest_edge" not in size:
        size = pair(size["height"], size["width"])
    elif size is not None:
        edge = whole(size["shortest_edge"] if isinstance(size, dict) else size)
        if config.get("crop_pct") is not None:
            if edge >= CONVNEXT_WARPS_FROM:
                return (edge, edge), None
            return int(edge / number(config["crop_pct"])), (edge, edge)
        stretched = not isinstance(size, dict) and not crops
        size = (edge, edge) if stretched else int(edge * LEVIT_RATIO) if is_kind(config, "Levit") else edge
    resize = size if config.get("do_resize", size is not None) else None
    crop = config.get("crop_size", config.get("size")) if crops else None
    if crop is None:
        return resize, None
    if isinstance(crop, dict):
        square = crop.get("shortest_edge")
        return resize, pair(crop["height"], crop["width"]) if square is None else pair(square, square)
    return resize, pair(crop, crop)


def timm(config: dict[str, Any]) -> Preprocessing | None:
    """The evaluation transform of a timm `config.json`; None where the file is another library's.

    https://huggingface.co/docs/timm/hf_hub: settings lie under pretrained_cfg, in older files beside the architecture.
    """
    settings = config.get("pretrained_cfg", config if "architecture" in config else None)
    if settings is None or "input_size" not in settings:
        return None
    channels, height, width = (whole(length) for length in settings["input_size"])
    ratio = number(settings.get("crop_pct", 0.875))
    mode = settings.get("crop_mode", "center")
    larger = (math.floor(height / ratio), math.floor(width / ratio))
    interpolation = str(settings.get("interpolation", "bilinear"))
    return Preprocessing(
        resize=larger if mode == "squash" else max(larger),
        crop=(height, width),
        # "random" is for training; timm evaluates with its default then.
        interpolation=interpolation if interpolation in RESAMPLING.values() else "bilinear",
        mean=numbers(settings.get("mean", (0.0,))),
        std=numbers(settings.get("std", (1.0,))),
        grayscale=channels == 1,
        not_followed=() if mode in ("center", "squash") else (f"crop_mode {mode}",),
    )


def is_kind(config: dict[str, Any], kind: str) -> bool:
    return any(kind in str(config.get(key, "")) for key in ("image_processor_type", "feature_extractor_type"))


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{value!r} is not a number above 0")
    return float(value)


def whole(value: Any) -> int:
    return int(number(value))


def pair(height: Any, width: Any) -> tuple[int, int]:
    return whole(height), whole(width)


def numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in (values if isinstance(values, (list, tuple)) else [values]))
