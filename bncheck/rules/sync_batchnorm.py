"""A SyncBatchNorm in what is released, which needs the machinery of distributed training.

## What it checks

The class of the layer, as the pickled module names it, is one that averages over processes: SyncBatchNorm of torch or
apex, NaiveSyncBatchNorm of detectron2, SynchronizedBatchNorm2d, InPlaceABNSync and their like.

## Why it matters

In training, SyncBatchNorm makes a group of processes agree on the statistics. A released model has no such group. Older
versions of torch refuse every input on the CPU ("expected input tensor to be on GPU"); current ones still refuse it in
train mode as soon as torch.distributed is initialised. Exporters, fusers and quantisers look for BatchNorm2d and do not
know the class, and the variants of other packages have to be installed wherever the model is loaded.

## When it is wrong

A checkpoint to resume distributed training from has these layers by right. A state_dict holds no classes, so it does
not have the defect: its tensors are those of a BatchNorm2d. In a graph (a traced module, an exported program, ONNX)
the name of the class is only a memory; the operator in it is the usual one, and nothing is reported.

## What to do

Save the state_dict and load it into the model as it was before convert_sync_batchnorm. Where there is only the module,
replace each layer by a BatchNorm2d with the same settings and tensors, as revert_sync_batchnorm of mmcv does.

## Seen in

open-mmlab/mmocr#420, open-mmlab/mmsegmentation#387, open-mmlab/mmcv#1253, ultralytics/yolov5#1018,
pytorch/pytorch#41081; NVIDIA/apex#1768 (wrong statistics in channels_last)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import Known
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer

SYNCHRONISED = re.compile(r"sync(hroni[sz]ed)?_?(batch_?norm|bn)|(abn|batch_?norm)\w*_?sync", re.IGNORECASE)


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    kind = layer.kind.value
    # What is inferred from tensors has no class, and in a graph the class no longer runs.
    if kind is None or layer.kind.known is Known.INFERRED or layer.baked or not SYNCHRONISED.search(kind):
        return
    yield Evidence(
        f"the class is {quoted(kind)}: it belongs to distributed training, and exporters do not know it",
        "Load the state_dict into the model as it was before the conversion, and save that.",
        layer,
        {"class": layer.class_path or kind},
    )


RULE = Rule("sync-batchnorm", Severity.WARNING, "the class: a pickled module", __doc__, layer=check)
