"""Checkpoints as training frameworks write them: every model in them is found, and clean files set off nothing.

The classes of the frameworks are written anew in modules that are gone when bncheck reads: what a file holds of a
class is its name and the state of its objects.
"""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.commands.inspect import run
from bncheck.errors import UnsupportedError
from bncheck.findings.rule import Severity
from bncheck.subjects.checkpoint import Checkpoint

Read = Callable[[Path], Checkpoint]


class Phase(enum.Enum):
    """An enumeration of a training script."""

    WARMUP = 1


def trained(*, half: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    for _ in range(100):  # enough for momentum 0.1
        network(torch.randn(8, 3, 6, 6))
    return network.half().eval() if half else network.eval()


def vanishing(path: str, names: dict[str, type]) -> dict[str, Any]:
    """Classes under the module path of a package that is not installed."""
    parts = path.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    made = {}
    for name, base in names.items():
        made[name] = type(name, (base,), {"__module__": path})
        setattr(sys.modules[path], name, made[name])
    return made


def lightning() -> Any:
    found = vanishing("pytorch_lightning.utilities.parsing", {"AttributeDict": dict})
    optimizer = torch.optim.Adam(trained().parameters())
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{key}": value for key, value in trained().state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "hparams",
        "hyper_parameters": found["AttributeDict"](
            norm=functools.partial(nn.BatchNorm2d, eps=1e-3), data=pathlib.PurePosixPath("data"), lr=np.float64(0.1)
        ),
    }


def ultralytics() -> Any:
    found = vanishing("ultralytics.nn.tasks", {"DetectionModel": nn.Module})
    model = found["DetectionModel"]()
    model.model = trained(half=True)
    model.names = {0: "person"}
    model.args = types.SimpleNamespace(imgsz=640)
    return {
        "epoch": -1,
        "best_fitness": None,
        "model": model,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": {"lr0": 0.01, "device": torch.device("cpu")},
        "date": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc).isoformat(),
        "version": "8.3.0",
    }


def mmengine() -> Any:
    found = vanishing("mmengine.logging.history_buffer", {"HistoryBuffer": object})
    history = found["HistoryBuffer"]()
    history._log_history = np.arange(5.0)
    history._statistics_methods = {"mean": np.mean}
    return {
        "meta": {"epoch": 2, "iter": 80, "mmengine_version": "0.10.4", "cfg": "model = dict()", "seed": np.int64(1)},
        "state_dict": trained().state_dict(),
        "message_hub": {"log_scalars": {"train/loss": history}, "runtime_info": collections.OrderedDict(epoch=2)},
        "optimizer": torch.optim.SGD(trained().parameters(), lr=0.1, momentum=0.9).state_dict(),
    }


def script() -> Any:
    containers = vanishing("omegaconf.dictconfig", {"DictConfig": object})
    config = containers["DictConfig"]()
    config._content = {"lr": 0.1, "nested": [1, 2]}
    return {
        "args": argparse.Namespace(
            lr=0.1, out=pathlib.Path("out"), when=datetime.datetime(2026, 1, 1), phase=Phase.WARMUP
        ),
        "net": trained().state_dict(),
        "acc": np.float32(0.75),
        "confusion": np.eye(3),
        "rng": (torch.get_rng_state(), np.random.RandomState(0).get_state()),
        "counts": collections.Counter("abc"),
        "groups": collections.defaultdict(list, a=[1]),
        "limits": {slice(1, 2).stop, 2.5},
        "elapsed": datetime.timedelta(seconds=3),
        "half": torch.float16,
        "size": torch.Size([1, 2]),
        "config": config,
        "queue": collections.deque([1, 2]),
        "complex": 1 + 2j,
    }


def averaged() -> Any:
    return torch.optim.swa_utils.AveragedModel(trained()).eval().state_dict()


# name of the framework: what it saves, the groups with layers, names of the layers, facts
WRITERS: dict[str, tuple[Callable[[], Any], list[str], list[str], dict[str, object]]] = {
    "Lightning": (
        lightning,
        ["state_dict"],
        ["model.1", "model.3"],
        {"epoch": 3, "global_step": 120, "pytorch-lightning_version": "2.4.0", "hparams_name": "hparams"},
    ),
    "Ultralytics": (
        ultralytics,
        ["model"],
        ["model.1", "model.3"],
        {"epoch": -1, "date": "2026-01-01T00:00:00+00:00", "version": "8.3.0"},
    ),
    "mmengine": (
        mmengine,
        ["state_dict"],
        ["1", "3"],
        {
            "meta.epoch": 2, "meta.iter": 80, "meta.mmengine_version": "0.10.4", "meta.cfg": "model = dict()",
            "meta.seed": 1,
        },
    ),
    "a script": (script, ["net"], ["1", "3"], {"acc": 0.75}),
    "AveragedModel": (averaged, [""], ["1", "3"], {}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "zipped"),
    # The old format stores the source text of module classes, and those of Ultralytics have none here.
    [(name, zipped) for name in WRITERS for zipped in (True, False) if zipped or name != "Ultralytics"],
)
def test_a_clean_training_checkpoint_is_read_and_quiet(tmp_path: Path, read: Read, name: str, zipped: bool) -> None:
    write, groups, names, facts = WRITERS[name]
    before = set(sys.modules)
    try:
        torch.save(write(), tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    finally:
        for module in set(sys.modules) - before:
            if module.split(".")[0] in ("pytorch_lightning", "ultralytics", "mmengine", "omegaconf"):
                del sys.modules[module]
    checkpoint = read(tmp_path / "last.ckpt")
    assert [group.name for group in checkpoint.groups if group.layers] == groups
    assert [layer.name for layer in checkpoint.layers] == names
    assert dict(checkpoint.facts) == facts
    [report] = run({"paths": [tmp_path / "last.ckpt"], "fail_on": "warning"}).reports
    loud = [finding for finding in report.findings if finding.severity.at_least(Severity.WARNING)]
    assert [(finding.rule, finding.message) for finding in loud] == []


def test_an_archive_that_holds_a_checkpoint_gets_a_hint(tmp_path: Path, read: Read) -> None:
    torch.save(trained(), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.write(tmp_path / "model.pt", "release/model.pt")
        archive.writestr("release/readme.txt", "hello")
    for name, mode in (("release.tar", "w"), ("release.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(tmp_path / "model.pt", "release/model.pt")
    for name, what in (
        ("release.zip", r"is a zip file that holds 'release/model\.pt'"),
        ("release.tar", r"is a tar archive that holds 'release/model\.pt'"),
        ("release.tar.gz", "is a compressed file"),
    ):
        with pytest.raises(UnsupportedError, match=what) as caught:
            read(tmp_path / name)
        assert caught.value.hint == "Unpack it and give the checkpoint inside."
