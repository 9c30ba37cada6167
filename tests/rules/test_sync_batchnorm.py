"""Layers that belong to distributed training."""

import copy

import torch

from bncheck.evaluation.models.live import live_group
from bncheck.rules.sync_batchnorm import RULE
from bncheck.subjects.layer import inferred, stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, fires, quiet, said, warning

QUIET: Quiet = {
    "BatchNorm2d": layer(),
    "a state_dict names no class": of_state_dict(),
    "FrozenBatchNorm2d": layer(kind=stored("FrozenBatchNorm2d")),
    "BatchNormAct2d of timm": layer(kind=stored("BatchNormAct2d")),
    "InPlaceABN": layer(kind=stored("InPlaceABN")),
    "a graph remembers only the name": layer(kind=stored("SyncBatchNorm"), baked=True),
    "what is inferred names no class": layer(kind=inferred("SyncBatchNorm")),
    "a class that has nothing to do with it": layer(kind=stored("AsyncLoaderNorm")),
}

FIRES: Fires = {
    "SyncBatchNorm": (layer(kind=stored("SyncBatchNorm")), warning()),
    "NaiveSyncBatchNorm": (layer(kind=stored("NaiveSyncBatchNorm")), warning()),
    "NaiveSyncBatchNorm3d": (layer(kind=stored("NaiveSyncBatchNorm3d")), warning()),
    "SynchronizedBatchNorm2d": (layer(kind=stored("SynchronizedBatchNorm2d")), warning()),
    "SyncBN": (layer(kind=stored("SyncBN")), warning()),
    "SyncBatchNormAct": (layer(kind=stored("SyncBatchNormAct")), warning()),
    "InPlaceABNSync": (layer(kind=stored("InPlaceABNSync")), warning()),
    "BatchNorm2dSync": (layer(kind=stored("BatchNorm2dSync")), warning()),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


def test_a_converted_network() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    assert said(RULE, live_group(network).layers) == []
    assert said(RULE, live_group(converted).layers) == [("warning", "1")]
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(network(images), converted(images)), "torch 2 runs it on the CPU, hence no error"
