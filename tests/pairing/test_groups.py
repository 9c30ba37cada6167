"""How the layers of two checkpoints find each other, and what is compared."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bncheck
from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UsageError
from bncheck.findings.measurements import as_json
from bncheck.findings.report import Report, Verdict
from bncheck.pairing.equality import PIECE, equal_tensors
from bncheck.pairing.groups import pair_of
from bncheck.pairing.names import proposals
from bncheck.subjects.checkpoint import Checkpoint, Tensor
from bncheck.subjects.pair import CheckpointPair
from tests.rules.layers import layer, of_state_dict
from tests.rules.pairs import MOVED, file


class Block(nn.Module):
    """A convolution and its BatchNorm, registered the other way round if asked."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.bn(self.conv(images))
        return normalised


class Network(nn.Module):
    """Two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block(3)
        self.second = Block(5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.second(self.first(images))
        return scores


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    made = Network()
    made(torch.randn(8, 3, 9, 9))
    return made


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


# -- what feeds a layer


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


# -- large tensors


def test_large_tensors_are_compared_in_pieces_up_to_the_first_difference() -> None:
    read: list[tuple[int, int]] = []
    values = np.zeros(PIECE * 3 + 5, np.float32)

    def part(start: int, stop: int) -> Any:
        read.append((start, stop))
        return values[start:stop]

    def refuse() -> Any:
        pytest.fail("it is read as a whole")

    own = Tensor("float32", values.shape, refuse, part)
    assert equal_tensors(own, own)
    assert read[::2] == [(0, PIECE), (PIECE, 2 * PIECE), (2 * PIECE, 3 * PIECE), (3 * PIECE, 3 * PIECE + 5)]
    other_values = values.copy()
    other_values[PIECE + 3] = 1
    read.clear()
    other = Tensor("float32", values.shape, refuse, lambda start, stop: other_values[start:stop])
    assert not equal_tensors(own, other)
    assert read == [(0, PIECE), (PIECE, 2 * PIECE)]


def test_what_cannot_be_read_in_pieces_and_is_large_is_not_known() -> None:
    whole = Tensor("float32", (2**20 + 1,), lambda: pytest.fail("too large"))
    assert equal_tensors(whole, whole) is None
    assert equal_tensors(Tensor("qint8", (2,), None), Tensor("qint8", (2,), None)) is None
    assert equal_tensors(Tensor("float32", (2,), None), Tensor("float32", (3,), None)) is False


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "expanded", "a slice"])
def test_pieces_of_any_layout_are_those_of_the_whole(layout: str, tmp_path: Path) -> None:
    whole = torch.randn(6, 5, 3, 3)
    made = {
        "contiguous": whole,
        "channels last": whole.to(memory_format=torch.channels_last),
        "expanded": whole[:1].expand(6, 5, 3, 3),
        "a slice": torch.randn(6, 9, 3, 3)[:, 2:7],
    }[layout]
    torch.save({"w": made, "bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2)}, tmp_path / "m.pt")
    flat = made.numpy().reshape(-1)
    with FileSource(tmp_path / "m.pt") as source:
        part = read_checkpoint(source).groups[0].tensors["w"].part
        if layout == "expanded":  # a few bytes could describe any shape
            assert part is None
            return
        assert part is not None
        for start, stop in ((0, 270), (0, 1), (44, 46), (45, 90), (100, 269), (269, 270)):
            assert flat[start:stop].tolist() == part(start, stop).tolist(), (start, stop)


def test_comparing_large_convolutions_takes_little_memory(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(512, 1024, 3, bias=False), nn.BatchNorm2d(1024))  # 18 MiB
    for name in ("a.pt", "b.pt"):
        torch.save(net.state_dict(), tmp_path / name)
    bncheck.diff(tmp_path / "a.pt", tmp_path / "b.pt")  # imports are no part of it
    tracemalloc.start()
    try:
        report = bncheck.diff(tmp_path / "a.pt", tmp_path / "b.pt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert feeders(report) == {"1": ("0.weight",)}
    assert peak < 12 * 2**20


def test_damage_in_a_large_tensor_is_not_taken_for_equality(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-8])
    with pytest.raises(bncheck.BncheckError):
        bncheck.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


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


def test_of_several_groups_the_one_that_was_left_out_is_said() -> None:
    pair = pair_of(two_groups(layers("x.bn"), layers("a.bn", "b.bn"), "other", "net"), layers("a.bn", "b.bn"))
    assert [group.before.name for group in pair.groups] == ["net"]
    assert pair.notes == ("of model.pt, net is compared, not other (--before-group chooses)",)


def test_many_layers_are_matched_in_a_moment() -> None:
    names = [f"layer{block}.{index}.bn{place}" for block in range(4) for index in range(60) for place in (1, 2, 3)]
    assert len(proposals(names, [f"net.{name}" for name in names])) <= 33
    before, after = file(*map(of_state_dict, names)), file(*(of_state_dict(f"net.{name}") for name in names))
    assert len(names) == len(pair_of(before, after).changes)
