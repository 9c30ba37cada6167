"""The preprocessing beside a checkpoint is understood as the library understands it that wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bncheck.errors import UnreadableError
from bncheck.evaluation.data.preprocessing import Preprocessing, find_preprocessing
from bncheck.options.data import DataOptions

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def beside(folder: Path, name: str, config: object, **options: Any) -> Preprocessing:
    (folder / name).write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    return find_preprocessing(DataOptions(**options), folder / "model.safetensors")


def settings(found: Preprocessing) -> tuple[object, ...]:
    return found.resize, found.crop, found.interpolation, found.divisor, found.mean, found.std


HUGGING_FACE: dict[str, tuple[dict[str, Any], tuple[object, ...]]] = {
    "a square, as ViT has it": (
        {"size": {"height": 224, "width": 200}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        ((224, 200), None, "bilinear", 255.0, (0.5,) * 3, (0.5,) * 3),
    ),
    "a bare number without a crop is a square": (
        {"size": 224, "resample": 3, "image_mean": MEAN, "image_std": STD},
        ((224, 224), None, "bicubic", 255.0, tuple(MEAN), tuple(STD)),
    ),
    "shorter side and crop, as MobileNetV2 has them": (
        {
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "rescale_factor": 0.00392156862745098,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        (256, (224, 224), "bilinear", 255.0, (0.5,) * 3, (0.5,) * 3),
    ),
    "bare numbers with a crop": (
        {"size": 256, "crop_size": 224, "do_center_crop": True, "do_normalize": False, "image_mean": MEAN},
        (256, (224, 224), "bilinear", 255.0, (0.0,), (1.0,)),
    ),
    "a share, as ConvNext, ResNet and RegNet have it": (
        {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, "image_mean": MEAN, "image_std": STD},
        (256, (224, 224), "bicubic", 255.0, tuple(MEAN), tuple(STD)),
    ),
    "a share is not cut from 384 on": (
        {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3},
        ((384, 384), None, "bicubic", 255.0, (0.0,), (1.0,)),
    ),
    "LeViT resizes to more than it says": (
        {
            "image_processor_type": "LevitImageProcessor",
            "size": {"shortest_edge": 224},
            "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224},
        },
        (256, (224, 224), "bilinear", 255.0, (0.0,), (1.0,)),
    ),
    "EfficientNet divides by std twice": (
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "size": {"height": 224, "width": 224},
            "resample": 0,
            "include_top": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        ((224, 224), None, "nearest", 255.0, (0.5,) * 3, (0.25,) * 3),
    ),
    "pixels that stay as they are": (
        {"do_resize": False, "do_rescale": False, "size": 224},
        (None, None, "bilinear", 1.0, (0.0,), (1.0,)),
    ),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(tmp_path: Path, name: str) -> None:
    config, expected = HUGGING_FACE[name]
    assert expected == settings(beside(tmp_path, "preprocessor_config.json", config))


TIMM: dict[str, tuple[dict[str, Any], tuple[object, ...]]] = {
    "center": (
        {"input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bicubic", "mean": MEAN, "std": STD},
        (235, (224, 224), "bicubic", 255.0, tuple(MEAN), tuple(STD)),
    ),
    "squash": (
        {"input_size": [3, 288, 288], "crop_pct": 1.0, "crop_mode": "squash", "mean": MEAN, "std": STD},
        ((288, 288), (288, 288), "bilinear", 255.0, tuple(MEAN), tuple(STD)),
    ),
}


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("old", [False, True], ids=["pretrained_cfg", "older file"])
def test_timm(tmp_path: Path, name: str, old: bool) -> None:
    config, expected = TIMM[name]
    whole = {"architecture": "resnet18", **(config if old else {"pretrained_cfg": config})}
    assert expected == settings(beside(tmp_path, "config.json", whole))


def test_a_timm_network_of_one_channel_is_gray(tmp_path: Path) -> None:
    config = {"pretrained_cfg": {"input_size": [1, 28, 28], "mean": [0.5], "std": [0.5]}}
    assert beside(tmp_path, "config.json", config).grayscale


def test_the_config_of_another_library_says_nothing(tmp_path: Path) -> None:
    found = beside(tmp_path, "config.json", {"model_type": "resnet", "hidden_sizes": [64]})
    assert settings(found) == (None, None, "bilinear", 255.0, (0.0,), (1.0,))
    assert found.origin["size"] == "not given: images as they are"


def test_what_the_user_gives_comes_first(tmp_path: Path) -> None:
    config = HUGGING_FACE["a square, as ViT has it"][0]
    found = beside(tmp_path, "preprocessor_config.json", config, size=(32, 32))
    assert (found.resize, found.crop, found.mean) == ((32, 32), None, (0.5,) * 3)
    assert found.origin == {"size": "options", "mean": "preprocessor_config.json"}
    found = beside(tmp_path, "preprocessor_config.json", config, mean=(0.1,))
    assert (found.resize, found.mean, found.std) == ((224, 200), (0.1,), (0.5,) * 3)
    assert found.origin == {"size": "preprocessor_config.json", "mean": "options and preprocessor_config.json"}


def test_steps_that_are_not_known_are_told(tmp_path: Path) -> None:
    config = {"size": {"shortest_edge": 800, "longest_edge": 1333}, "do_pad": True, "do_resize": True}
    found = beside(tmp_path, "preprocessor_config.json", config)
    assert found.describe()["not_followed"] == ["do_pad", "longest_edge"]


DAMAGED = {
    "empty": "",
    "a list": "[]",
    "deep": "[" * 100_000,
    "long": " " * 2**20 + "{}",
    "a word for a size": '{"size": "large"}',
    "no width": '{"size": {"height": 3}}',
    "a negative size": '{"size": -1}',
    "an infinite size": '{"size": 1e999}',
    "a size of true": '{"size": true}',
    "an unknown filter": '{"resample": 99, "size": 1}',
    "a list for a filter": '{"resample": [], "size": 1}',
    "no mean": '{"image_mean": null}',
    "no std": '{"image_mean": [1]}',
    "no factor": '{"rescale_factor": 0}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_configuration_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(DAMAGED[name])
    with pytest.raises(UnreadableError, match="is no preprocessing that bncheck understands"):
        find_preprocessing(DataOptions(), tmp_path)


def test_a_damaged_configuration_that_nobody_needs_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("?")
    found = find_preprocessing(DataOptions(size=(8, 8), mean=(0.5,), std=(0.5,)), tmp_path)
    assert (found.resize, found.mean, found.std) == ((8, 8), (0.5,), (0.5,))


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 224}, "crop_pct": 0},
        {"size": 256, "do_center_crop": True, "crop_size": {"shortest_edge": 0, "height": 224, "width": 224}},
    ],
    ids=["crop_pct", "crop_size"],
)
def test_a_length_of_zero_is_damage_and_not_a_gap(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UnreadableError, match="0 is not a number above 0"):
        beside(tmp_path, "preprocessor_config.json", config)


def test_a_crop_that_is_null_is_a_gap(tmp_path: Path) -> None:
    chosen = beside(tmp_path, "preprocessor_config.json", {"size": {"shortest_edge": 224}, "crop_pct": None})
    assert (chosen.resize, chosen.crop) == (224, None)


def test_a_mean_of_zero_is_a_mean(tmp_path: Path) -> None:
    chosen = beside(tmp_path, "preprocessor_config.json", {"size": 8, "image_mean": MEAN, "image_std": STD}, mean=0.0)
    assert (chosen.mean, chosen.std) == ((0.0,), tuple(STD))
    assert chosen.origin["mean"] == "options and preprocessor_config.json"
