"""A folder of images becomes the batches that training had, whatever is in the folder, in bounded memory."""

from __future__ import annotations

import json
import random
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bncheck.errors import UnreadableError, UsageError
from bncheck.evaluation.data.batches import Data, input_hash
from bncheck.evaluation.data.images import class_names, find_files, in_order
from bncheck.evaluation.data.opening import open_data
from bncheck.evaluation.data.pixels import Picture
from bncheck.options.data import DataOptions
from tools.real_checkpoints import fetch

DIGITS = Path(__file__).parents[3] / "sample_checkpoints" / "digits"
IMAGENET = DataOptions(batch_size=8, resize=256, size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> Any:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of 6x4 pixels."""
    for seed in range(10):
        save(tmp_path / "images" / f"{seed}.png", noise(6, 4, seed))
    return tmp_path / "images"


def inputs_of(data: Data) -> torch.Tensor:
    parts = [batch.inputs for batch in data]
    assert all(isinstance(part, torch.Tensor) for part in parts)
    return torch.cat(parts)  # type: ignore[arg-type]


def only(path: Path, **options: Any) -> torch.Tensor:
    """The pixels of one image between 0 and 255."""
    return inputs_of(open_data(str(path), DataOptions(**options)))[0] * 255


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bncheck")]


# -- what comes out


def test_pixels_are_divided_by_255_and_normalised(folder: Path) -> None:
    data = open_data(str(folder), DataOptions(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    stored = torch.stack([torch.from_numpy(noise(6, 4, seed)) for seed in range(10)]).permute(0, 3, 1, 2)
    expected = (stored.float() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1)
    assert torch.equal(expected, inputs_of(data))


def test_one_number_normalises_all_channels(folder: Path) -> None:
    one = open_data(str(folder), DataOptions(mean=(0.5,), std=(0.25,)))
    three = open_data(str(folder), DataOptions(mean=(0.5,) * 3, std=(0.25,) * 3))
    assert torch.equal(inputs_of(three), inputs_of(one))


def test_channels_may_come_last(folder: Path) -> None:
    first = inputs_of(open_data(str(folder), DataOptions()))
    last = inputs_of(open_data(str(folder), DataOptions(channels_last=True)))
    assert last.shape == (10, 6, 4, 3)
    assert torch.equal(first.permute(0, 2, 3, 1), last)
    assert last.is_contiguous()


def test_the_sample_digits_have_their_classes() -> None:
    data = open_data(str(DIGITS), DataOptions(batch_size=100, grayscale=True))
    assert tuple("0123456789") == data.classes
    assert data.samples == 360
    batches = list(data)
    assert [batch.size for batch in batches] == [100, 100, 100, 60]
    assert batches[0].inputs.shape == (100, 1, 8, 8)  # type: ignore[union-attr]
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    expected = [int(path.parent.name) for path in sorted(DIGITS.rglob("*.png"))]
    assert expected == labels.tolist()


def test_photographs_are_cut_as_torchvision_cuts_them(tmp_path: Path) -> None:
    for path in (fetch("foolbox") / "foolbox" / "data").glob("imagenet_*"):
        (tmp_path / path.name).symlink_to(path)
    data = open_data(str(tmp_path), IMAGENET)
    inputs = inputs_of(data)
    assert inputs.shape == (20, 3, 224, 224)
    assert data.classes is None
    # 1024x683, the only one that is not square: torchvision resizes it to 383x256, then cuts from column 80 and row 16.
    image = Image.open(tmp_path / "imagenet_10_541.jpg").resize((383, 256), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image.crop((80, 16, 304, 240)))).permute(2, 0, 1).float() / 255
    expected = (pixels - torch.tensor(IMAGENET.mean).view(3, 1, 1)) / torch.tensor(IMAGENET.std).view(3, 1, 1)
    assert torch.equal(expected, inputs[10])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"size": (5, 7)}, (5, 7), id="size alone stretches"),
        pytest.param({"resize": 5}, (5, 5), id="resize alone cuts out a square"),
        pytest.param({"resize": 9, "size": (3, 8)}, (3, 8), id="both"),
        pytest.param({}, (20, 10), id="neither leaves it"),
    ],
)
def test_size_and_resize(tmp_path: Path, options: dict[str, Any], expected: tuple[int, int]) -> None:
    save(tmp_path / "tall.png", noise(20, 10))
    assert expected == only(tmp_path, **options).shape[1:]


# -- kinds of images


def test_a_gray_image_is_repeated_for_a_color_network(tmp_path: Path) -> None:
    pixels = only(save(tmp_path / "gray.png", noise(4, 4, channels=1)))
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


def test_sixteen_bits_keep_their_precision(tmp_path: Path) -> None:
    stored = np.array([[0, 1], [32768, 65535]], dtype=np.uint16)
    pixels = only(save(tmp_path / "deep.png", stored), grayscale=True)
    assert np.allclose(stored / 257, pixels[0], rtol=1e-6)
    Image.fromarray(stored).save(tmp_path / "deep.tiff")
    assert torch.equal(pixels, only(tmp_path / "deep.tiff", grayscale=True))


def test_a_netpbm_image_of_sixteen_bits(tmp_path: Path) -> None:
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], ">u2").tobytes())
    assert np.allclose([1, 255], only(tmp_path / "deep.pgm", grayscale=True)[0, 0])


def test_transparency_is_dropped(tmp_path: Path) -> None:
    pixels = noise(4, 4, channels=4)
    expected = torch.from_numpy(pixels[:, :, :3].copy()).permute(2, 0, 1).float() / 255 * 255
    assert torch.equal(expected, only(save(tmp_path / "clear.png", pixels)))


def test_a_palette_gives_its_colors_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=bytes([0, 128]))
    for name in ("plain.png", "clear.png"):
        assert only(tmp_path / name)[:, 0].round().tolist() == [[255, 0], [0, 0], [0, 255]]


def test_black_and_white_and_cmyk(tmp_path: Path) -> None:
    Image.new("1", (2, 2), 1).save(tmp_path / "one.png")
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    assert only(tmp_path / "one.png").eq(255).all()
    assert only(tmp_path / "print.jpg").eq(255).all()


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "lime")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert only(tmp_path / "moving.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_the_orientation_in_exif_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", noise(4, 8), exif=exif)
    assert only(tmp_path / "turned.jpg").shape[1:] == (4, 8)


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UnreadableError, match=r"'float\.tiff' cannot be read: it has pixels of 32 bits"):
        list(open_data(str(tmp_path), DataOptions()))


# -- which files


def test_files_are_found_in_one_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a.png", "c/d/e.jpg", "b.txt", ".hidden/x.png", ".x.png", "__MACOSX/b/2.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_files(tmp_path, {".png", ".jpg"}) == ["a.png", "b/10.PNG", "b/2.png", "c/d/e.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.png", noise(2, 2))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    assert find_files(tmp_path / "root", {".png"}) == ["linked/x.png"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["cat/1.png", "dog/2.png"], ("cat", "dog"), id="two classes"),
        pytest.param(["n1/images/1.png", "n2/images/2.png"], ("n1", "n2"), id="images one level deeper"),
        pytest.param(["cat/1.png", "dog/2.png", "loose.png"], None, id="a loose file"),
        pytest.param(["images/1.png", "images/2.png"], None, id="one folder is no class"),
        pytest.param(["train/cat/1.png", "val/cat/2.png"], None, id="parts of a data set"),
        pytest.param(["1.png"], None, id="no folder"),
    ],
)
def test_sub_folders_are_classes(names: list[str], expected: tuple[str, ...] | None) -> None:
    assert expected == class_names(names)


def test_one_image_is_enough(folder: Path) -> None:
    data = open_data(str(folder / "3.png"), DataOptions())
    assert inputs_of(data).shape == (1, 3, 6, 4)


def test_no_more_than_the_limit(folder: Path) -> None:
    data = open_data(str(folder), DataOptions(batch_size=4, limit=7))
    assert data.samples == 7
    assert [batch.size for batch in data] == [4, 3]
    assert data.samples == 7


def test_a_limit_takes_images_of_every_class(tmp_path: Path) -> None:
    for label in range(5):
        for place in range(10):
            save(tmp_path / str(label) / f"{place}.png", noise(4, 4))
    [batch] = open_data(str(tmp_path), DataOptions(limit=10))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# -- what goes wrong


def broken(folder: Path) -> None:
    """Four files that are no images, each in its own way."""
    jpeg = save(folder / "3.jpg", noise(64, 64)).read_bytes()
    (folder / "3.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "4.png").write_text("<html>404</html>")
    (folder / "5.png").write_bytes(b"")
    png = bytearray((folder / "6.png").read_bytes())
    png[45] ^= 0xFF
    (folder / "6.png").write_bytes(png)


def test_a_broken_image_is_named(folder: Path) -> None:
    (folder / "4.png").write_text("<html>404</html>")
    with pytest.raises(UnreadableError) as raised:
        list(open_data(str(folder), DataOptions()))
    assert raised.value.message == "image '4.png' cannot be read"
    assert "--skip-unreadable" in raised.value.hint
    assert our_threads() == []


@pytest.mark.parametrize("workers", [0, 3])
def test_broken_images_are_skipped_and_listed(folder: Path, workers: int) -> None:
    broken(folder)
    data = open_data(str(folder), DataOptions(batch_size=3, skip_unreadable=True, workers=workers))
    for _ in range(2):
        assert [batch.size for batch in data] == [3, 3, 1]
        assert data.skipped == ["3.jpg", "4.png", "5.png", "6.png"]
        assert data.samples == 7


def test_the_limit_counts_images_that_can_be_read(folder: Path) -> None:
    broken(folder)
    data = open_data(str(folder), DataOptions(limit=5, skip_unreadable=True))
    assert [batch.size for batch in data] == [5]
    assert data.samples == 5


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("no")
    with pytest.raises(UnreadableError, match="holds 1 image, of which none can be read"):
        list(open_data(str(tmp_path), DataOptions(skip_unreadable=True)))


def test_images_of_two_sizes_are_named(folder: Path) -> None:
    save(folder / "5.png", noise(7, 4))
    with pytest.raises(UsageError) as raised:
        list(open_data(str(folder), DataOptions(batch_size=2)))
    assert (
        raised.value.message
    ) == "images of different sizes: '0.png' has 6x4 and '5.png' has 7x4 pixels (height x width)"
    assert "--resize" in raised.value.hint
    assert list({tuple(b.inputs.shape[2:]) for b in open_data(str(folder), DataOptions(size=(3, 3)))}) == [(3, 3)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "side",
    [
        pytest.param(10_000, id="refused by us", marks=pytest.mark.filterwarnings("ignore")),
        pytest.param(10_001, id="a warning of Pillow"),
        pytest.param(20_000, id="an error of Pillow"),
    ],
)
def test_a_decompression_bomb_does_not_go_off(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(UnreadableError, match=r"image 'bomb\.png' says that it has more than 89,478,485 pixels"):
        list(open_data(str(tmp_path), DataOptions()))


def test_a_postscript_file_is_not_run_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableError, match=r"image 'photo.png' cannot be read$"):
        list(open_data(str(tmp_path), DataOptions()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"mean": (0.1, 0.2)}, "--mean has 2 numbers for RGB images", id="two means"),
        pytest.param(
            {"std": (1.0, 1.0, 1.0), "grayscale": True}, "--std has 3 numbers for gray images", id="three for gray"
        ),
        pytest.param({"std": (0.0,)}, "--std 0.0 normalises nothing", id="std of zero"),
        pytest.param({"mean": (float("nan"),)}, "--mean nan normalises nothing", id="mean of nan"),
        pytest.param({"resize": 200, "size": (224, 224)}, "--size 224x224 cannot be cut out", id="crop too large"),
        pytest.param({"size": (0, 3)}, "size=(0, 3) is no size", id="size of zero"),
        pytest.param({"batch_size": 0}, "batch_size=0 must be at least 1", id="empty batches"),
        pytest.param({"limit": 0}, "limit=0 must be at least 1", id="limit of zero"),
        pytest.param({"workers": -1}, "workers=-1 must be at least 0", id="less than no workers"),
        pytest.param({"input_key": ("x",)}, "--input-key is not for images", id="key of an image"),
    ],
)
def test_options_that_mean_nothing(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_data(str(folder), DataOptions(**options))
    assert raised.value.message.startswith(message)


# -- a pass


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_each_pass_has_the_same_batches(folder: Path, workers: int) -> None:
    data = open_data(str(folder), DataOptions(batch_size=3, workers=workers))
    alone = open_data(str(folder), DataOptions(batch_size=3, workers=0))
    assert [input_hash(batch) for batch in alone] == [input_hash(batch) for batch in data]
    assert [input_hash(batch) for batch in data] == [input_hash(batch) for batch in data]


def test_two_passes_at_once_do_not_disturb_each_other(folder: Path) -> None:
    data = open_data(str(folder), DataOptions(batch_size=3))
    hashes = [input_hash(batch) for batch in data]
    both = [(input_hash(one), input_hash(other)) for one, other in zip(data, data, strict=True)]
    assert list(zip(hashes, hashes, strict=True)) == both


def test_random_numbers_are_left_alone(folder: Path) -> None:
    before = (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()))
    list(open_data(str(folder), DataOptions()))
    assert before == (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()))


def test_threads_end_with_the_pass(folder: Path) -> None:
    data = open_data(str(folder), DataOptions(batch_size=2, workers=3))
    list(data)
    assert our_threads() == []


def test_threads_end_when_the_consumer_stops_early(folder: Path) -> None:
    data = open_data(str(folder), DataOptions(batch_size=2, workers=3))
    for _batch in data:
        assert our_threads()
        break
    assert our_threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_threads_end_when_the_consumer_raises(folder: Path, error: type[BaseException]) -> None:
    data = open_data(str(folder), DataOptions(batch_size=2, workers=3))

    def consume() -> None:
        for _batch in data:
            raise error

    with pytest.raises(error):
        consume()
    assert our_threads() == []


def test_reading_ahead_is_bounded() -> None:
    """A slow consumer does not fill the memory with decoded images."""
    decoded: list[str] = []

    def decode(picture: Picture) -> Any:
        decoded.append(picture.name)
        return np.zeros(1, np.float32)

    pictures = (Picture("", str(place), None) for place in range(100))
    for place, (picture, _pixels) in enumerate(in_order(decode, pictures, workers=2, ahead=6)):
        assert str(place) == picture.name
        time.sleep(0.001)
        assert len(decoded) <= place + 6
    assert len(decoded) == 100


def peak_memory(use: Callable[[], object]) -> int:
    tracemalloc.start()
    use()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_folder(tmp_path: Path) -> None:
    """400 images are 20 MB as numbers; at any time there are a batch, one in the making, and what is read ahead."""
    pixels = noise(64, 64)
    for place in range(400):
        save(tmp_path / f"{place:03}.bmp", pixels)
    few = open_data(str(tmp_path), DataOptions(batch_size=4, limit=40))
    many = open_data(str(tmp_path), DataOptions(batch_size=4))
    sum(batch.size for batch in few)  # what is loaded once is loaded
    small = peak_memory(lambda: sum(batch.size for batch in few))
    large = peak_memory(lambda: sum(batch.size for batch in many))
    assert large < 1.25 * small + 100_000
    assert large < 30 * 64 * 64 * 3 * 4


def test_the_description_fits_into_a_report(folder: Path) -> None:
    data = open_data(str(folder), DataOptions(size=(3, 3)))
    expected = {
        "kind": "images",
        "path": str(folder),
        "files": 10,
        "layout": "NCHW",
        "resize": [3, 3],
        "crop": None,
        "interpolation": "bilinear",
        "divisor": 255.0,
        "mean": [0.0],
        "std": [1.0],
        "channels": 3,
        "from": {"size": "options", "mean": "not given: pixels between 0 and 1, not normalised"},
    }
    assert expected == json.loads(json.dumps(data.description))
