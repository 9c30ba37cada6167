"""How the layers of two checkpoints find each other, and what is compared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bncheck
from bncheck.errors import UsageError
from bncheck.findings.measurements import as_json
from bncheck.findings.report import Verdict
from bncheck.pairing.groups import pair_of
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.pair import CheckpointPair
from tests.pairing.networks import Network, network
from tests.rules.layers import layer
from tests.rules.pairs import MOVED, file


def names(pair: CheckpointPair) -> list[tuple[str, str]]:
    return [(change.before.name, change.after.name) for change in pair.changes]


def layers(*names: str, **fields: Any) -> Checkpoint:
    return file(*(layer(name, **fields) for name in names))


MATCHED: dict[str, tuple[Checkpoint, Checkpoint, list[tuple[str, str]]]] = {
    "the same names": (layers("a.bn", "b.bn"), layers("a.bn", "b.bn"), [("a.bn", "a.bn"), ("b.bn", "b.bn")]),
    "a prefix in the second": (
        layers("a.bn", "b.bn"),
        layers("m.a.bn", "m.b.bn"),
        [("a.bn", "m.a.bn"), ("b.bn", "m.b.bn")],
    ),
    "a prefix in the first": (
        layers("m.a.bn", "m.b.bn"),
        layers("a.bn", "b.bn"),
        [("m.a.bn", "a.bn"), ("m.b.bn", "b.bn")],
    ),
    "one in each": (
        layers("x.y.a.bn", "x.y.b.bn"),
        layers("z.a.bn", "z.b.bn"),
        [("x.y.a.bn", "z.a.bn"), ("x.y.b.bn", "z.b.bn")],
    ),
    "a single layer": (layers("model.bn"), layers("ema.bn"), [("model.bn", "ema.bn")]),
    "a part of a joint model": (
        layers("a.bn", "b.bn"),
        layers("model_B.c.bn", "model_A.a.bn", "model_A.b.bn"),
        [("a.bn", "model_A.a.bn"), ("b.bn", "model_A.b.bn")],
    ),
    "most layers decide": (
        layers("a.bn", "b.bn", "c.bn"),
        layers("a.bn", "m.a.bn", "m.b.bn", "m.c.bn"),
        [("a.bn", "m.a.bn"), ("b.bn", "m.b.bn"), ("c.bn", "m.c.bn")],
    ),
    "of equal parts the one with equal weights": (
        layers("a.bn", "b.bn"),
        file(
            *(layer(f"student.{name}.bn", weight=[2, 2, 2, 2]) for name in "ab"),
            *(layer(f"teacher.{name}.bn", **MOVED) for name in "ab"),
        ),
        [("a.bn", "teacher.a.bn"), ("b.bn", "teacher.b.bn")],
    ),
    "blocks with the same names inside": (
        layers("layer1.0.bn1", "layer2.0.bn1"),
        layers("net.layer1.0.bn1", "net.layer2.0.bn1"),
        [("layer1.0.bn1", "net.layer1.0.bn1"), ("layer2.0.bn1", "net.layer2.0.bn1")],
    ),
}


@pytest.mark.parametrize("name", MATCHED)
def test_layers_are_matched_below_prefixes(name: str) -> None:
    before, after, expected = MATCHED[name]
    assert expected == names(pair_of(before, after))


def test_a_mapping_overrides_what_would_be_found() -> None:
    before, after = layers("a.bn"), layers("teacher.a.bn", "student.a.bn")
    assert names(pair_of(before, after)) == [("a.bn", "teacher.a.bn")]
    assert names(pair_of(before, after, [("", "student.")])) == [("a.bn", "student.a.bn")]
    both = pair_of(layers("x.bn", "y.bn"), layers("p.bn", "q.bn"), [("x.", "q."), ("y.", "p.")])
    assert names(both) == [("x.bn", "q.bn"), ("y.bn", "p.bn")]


def test_prefixes_and_what_only_one_has_are_said() -> None:
    pair = pair_of(layers("a.bn", "b.bn", "gone.bn2"), layers("net.a.bn", "net.b.bn", "new.bn3"))
    assert pair.notes == (
        "layers of the first are matched with those below 'net.' in the second",
        "1 layer only in the first of the two: gone.bn2",
        "1 layer only in the second of the two: new.bn3",
    )


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(UsageError, match="have no BatchNorm layer in common"):
        pair_of(layers("a.bn"), layers("a.norm"))
    with pytest.raises(UsageError, match="have no BatchNorm layer in common"):
        pair_of(layers("a.bn"), file())


def test_no_batchnorm_in_either_is_no_error() -> None:
    assert Verdict.UNDECIDED is bncheck.diff(nn.Linear(2, 2), nn.Linear(2, 2)).verdict


def test_other_numbers_of_channels_do_not_match(tmp_path: Path) -> None:
    narrow, wide = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(4))
    with pytest.raises(UsageError):
        bncheck.diff(narrow, wide)


# -- silence: what is no event


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": held for name, held in state.items()}


UNREMARKABLE: dict[str, Callable[[Path, Network], tuple[Any, Any]]] = {
    "safetensors": lambda path, net: (
        saved(path / "a.pt", net.state_dict()),
        save_file(net.state_dict(), path / "b.safetensors") or path / "b.safetensors",
    ),
    "the old format of torch.save": lambda path, net: (
        saved(path / "a.pt", net.state_dict()),
        torch.save(net.state_dict(), path / "b.pt", _use_new_zipfile_serialization=False) or path / "b.pt",
    ),
    "a whole module": lambda path, net: (saved(path / "a.pt", net.state_dict()), saved(path / "b.pt", net.eval())),
    "DistributedDataParallel": lambda path, net: (
        saved(path / "a.pt", net.state_dict()),
        saved(path / "b.pt", wrapped(net.state_dict(), "module.")),
    ),
    "torch.compile": lambda path, net: (
        saved(path / "a.pt", net.state_dict()),
        saved(path / "b.pt", wrapped(net.state_dict(), "_orig_mod.")),
    ),
    "Lightning": lambda path, net: (
        saved(path / "a.pt", net.state_dict()),
        saved(path / "b.pt", {"state_dict": wrapped(net.state_dict(), "model."), "epoch": 3}),
    ),
    "half precision": lambda path, net: (saved(path / "a.pt", copy.deepcopy(net)), saved(path / "b.pt", net.half())),
    "bfloat16 by hand": lambda path, net: (
        saved(path / "a.pt", net.state_dict()),
        saved(path / "b.pt", {name: held.bfloat16() for name, held in net.state_dict().items()}),
    ),
    "channels last": lambda path, net: (
        saved(path / "a.pt", net.state_dict()),
        saved(path / "b.pt", net.to(memory_format=torch.channels_last).state_dict()),
    ),
    "a live module": lambda path, net: (saved(path / "a.pt", net.state_dict()), net),
}


@pytest.mark.parametrize("name", UNREMARKABLE)
def test_a_conversion_changes_nothing(name: str, tmp_path: Path) -> None:
    before, after = UNREMARKABLE[name](tmp_path, network())
    report = bncheck.diff(before, after, fail_on="note")
    assert (report.findings, report.verdict) == ((), Verdict.PASSED)
    measured: Any = as_json(report.measurements)["pair"]
    assert (measured["layers"], measured["same_parameters"], measured["same_statistics"]) == (2, 2, 2)
    wrapped_names = name in ("DistributedDataParallel", "torch.compile", "Lightning")
    assert wrapped_names == bool(report.notes)


def trained(net: Network, *, steps: int = 1) -> Network:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(steps):
        net(torch.randn(8, 3, 9, 9)).square().mean().backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("steps", [1, 30])
def test_training_is_no_event(steps: int) -> None:
    net = network()
    report = bncheck.diff(net, trained(copy.deepcopy(net), steps=steps), fail_on="note")
    assert report.findings == ()
    measured: Any = as_json(report.measurements)
    assert (measured["pair"]["same_parameters"], measured["pair"]["same_statistics"]) == (0, 0)
    assert {steps} == {one["counter_change"] for one in measured["layers"].values()}


def test_fine_tuning_with_batchnorm_in_eval_mode_is_no_event() -> None:
    net = network()
    tuned = copy.deepcopy(net).eval()
    assert bncheck.diff(net, trained(tuned), fail_on="note").findings == ()


# -- groups


def two_groups(first: Checkpoint, second: Checkpoint, *names: str) -> Checkpoint:
    from dataclasses import replace

    groups = [
        replace(group, name=name, layers=tuple(replace(one, group=name) for one in group.layers))
        for name, checkpoint in zip(names, (first, second), strict=True)
        for group in checkpoint.groups
    ]
    return replace(first, groups=tuple(groups))


def test_groups_of_one_name_are_compared_with_each_other() -> None:
    both = two_groups(layers("bn"), layers("bn"), "model", "ema")
    pair = pair_of(both, both)
    assert [(group.before.name, group.after.name) for group in pair.groups] == [("model", "model"), ("ema", "ema")]


def test_of_groups_with_as_many_layers_in_common_equal_weights_decide() -> None:
    weights = two_groups(layers("a.bn", **MOVED, weight=[2, 2, 2, 2]), layers("a.bn", **MOVED), "model", "ema")
    pair = pair_of(layers("a.bn"), weights)
    assert [group.after.name for group in pair.groups] == ["ema"]
    assert pair.notes == ("of model.pt, ema is compared, not model (--after-group chooses)",)


def test_of_several_groups_the_one_that_was_left_out_is_said() -> None:
    pair = pair_of(two_groups(layers("x.bn"), layers("a.bn", "b.bn"), "other", "net"), layers("a.bn", "b.bn"))
    assert [group.before.name for group in pair.groups] == ["net"]
    assert pair.notes == ("of model.pt, net is compared, not other (--before-group chooses)",)
