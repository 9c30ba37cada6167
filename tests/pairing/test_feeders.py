"""Which convolution or linear layer feeds a BatchNorm layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bncheck
from bncheck.findings.measurements import as_json
from bncheck.findings.report import Report
from tests.pairing.networks import network


def feeders(report: Report) -> dict[str, Any]:
    measured: Any = as_json(report.measurements)["layers"]
    return {name: one["fed_by"] for name, one in measured.items()}


@pytest.mark.parametrize("first", ["pt", "safetensors"])
@pytest.mark.parametrize("second", ["pt", "safetensors"])
def test_the_weight_in_front_of_a_layer_is_found_in_every_order(first: str, second: str, tmp_path: Path) -> None:
    """safetensors sorts bn.weight before conv.weight."""
    paths = []
    for place, kind in enumerate((first, second)):
        paths.append(tmp_path / f"{place}.{kind}")
        save = save_file if kind == "safetensors" else torch.save
        save(network().state_dict(), paths[-1])
    expected = {"first.bn": ("first.conv.weight",), "second.bn": ("second.conv.weight",)}
    assert expected == feeders(bncheck.diff(*paths))


def test_a_convolution_that_changed_speaks_for_its_layer() -> None:
    net = network()
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed.second.conv.weight[0, 0, 0, 0] += 1e-6
    measured: Any = as_json(bncheck.diff(net, changed).measurements)["layers"]
    assert {name: one["same_parameters"] for name, one in measured.items()} == {"first.bn": True, "second.bn": False}


def test_a_transposed_convolution_has_its_outputs_in_the_second_dimension() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(7, 4, 2), nn.BatchNorm2d(4))
    assert feeders(bncheck.diff(net, copy.deepcopy(net))) == {"1": ("0.weight",)}
