"""Some layers train, others do not."""

import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.findings.rule import CannotTell
from bncheck.judgement.diagnosis import diagnose
from bncheck.pairing.names import blocks
from bncheck.rules.mixed_modes import RULE
from bncheck.rules.saved_in_train_mode import RULE as SAVED_IN_TRAIN_MODE
from bncheck.subjects.checkpoint import Checkpoint, Group
from bncheck.subjects.layer import UNKNOWN, StatisticsUse, stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, Undecided, fires, quiet, said, undecided, warning

TRAIN = {"training": stored(True)}
BOTH = (SAVED_IN_TRAIN_MODE, RULE)
NONE = {"running_mean": None, "running_var": None}
NO_MODE = CannotTell("the file does not hold the mode", group="")

QUIET: Quiet = {
    "all in eval mode": (layer("a"), layer("b")),
    "all in train mode has a rule of its own": (layer("a", **TRAIN), layer("b", **TRAIN)),
    "a layer without statistics ignores the mode": (layer("a"), layer("b", **TRAIN, **NONE)),
    "a frozen layer ignores the mode": (layer("a"), layer("b", use=StatisticsUse.FROZEN, **TRAIN)),
    "in a graph, saved-in-train-mode speaks": (layer("a", baked=True), layer("b", baked=True, **TRAIN)),
    "one layer of a state_dict": (of_state_dict("a"),),
    "no layer": (),
    "a model in train mode beside its averaged copy in eval mode": Checkpoint(
        "model.pt",
        "torch.save",
        (Group("model", "module", {}, (layer("a", **TRAIN),)), Group("ema", "module", {}, (layer("a"),))),
    ),
}

FIRES: Fires = {
    "a frozen stem": (
        (layer("stem.bn"), layer("block.bn1", **TRAIN), layer("block.bn2", **TRAIN)),
        [
            warning(message="train mode: block (2 layers); eval mode: stem (1 layer)", layer="block.bn1"),
            warning(layer="block.bn2"),
        ],
    ),
    "eval() did not reach a layer": (
        (layer("net.a.bn1"), layer("net.a.bn2", **TRAIN), layer("net.b.bn")),
        warning(
            message="train mode: net.a.bn2 (1 layer); eval mode: net.a.bn1 (1 layer), net.b (1 layer)",
            layer="net.a.bn2",
        ),
    ),
    "a layer whose tracking was switched off still asks for its mode": (
        (layer("a"), layer("b", track_running_stats=stored(False), **TRAIN)),
        warning(message="train mode: b (1 layer); eval mode: a (1 layer)", layer="b"),
    ),
    "the known layers are mixed": (
        (layer("a"), layer("b", **TRAIN), layer("c", training=UNKNOWN)),
        warning(message="train mode: b (1 layer); eval mode: a (1 layer)", layer="b"),
    ),
}

UNDECIDED: Undecided = {
    "a state_dict": ((of_state_dict("a"), of_state_dict("b")), NO_MODE),
    "the odd one may be the unknown one": ((layer("a"), layer("b"), layer("c", training=UNKNOWN)), NO_MODE),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def test_blocks_are_the_shortest_names_that_tell_the_layers_apart() -> None:
    names = ["conv1", "layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer4.0.bn1", "layer4.0.bn2", "layer4.1.bn"]
    assert blocks(names[4:6], [*names[:4], names[6]]) == {"layer4.0": 2}
    assert blocks(names[:4], names[4:]) == {"conv1": 1, "layer1": 3}
    assert blocks(["a"], ["a.b"]) == {"a": 1}


def network(**options: bool) -> nn.Sequential:
    parts = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, **options)) for _ in range(3)]
    return nn.Sequential(*parts).eval()


def test_one_cause_is_told_once() -> None:
    made = network()
    made[2].train()
    checkpoint = Checkpoint("model.pt", "torch.save", (live_group(made),))
    assert [(f.rule, f.layer) for f in diagnose(checkpoint, None, BOTH).findings] == [("mixed-modes", "2.1")]


def test_a_graph_of_mixed_modes_keeps_its_error() -> None:
    group = Group("", "module", {}, (layer("a", baked=True), layer("b", baked=True, **TRAIN)))
    report = diagnose(Checkpoint("model.pt2", "torch.export", (group,)), None, BOTH)
    assert [(f.rule, f.severity.value, f.layer) for f in report.findings] == [("saved-in-train-mode", "error", "b")]


def test_the_layers_in_train_mode_are_those_that_torch_rewrites() -> None:
    made = network()
    made[1].train()
    in_train_mode = [name for _, name in said(RULE, live_group(made).layers)]
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    made(torch.randn(4, 3, 5, 5))
    changed = {name for name, buffer in made.named_buffers() if not torch.equal(before[name], buffer)}
    assert changed == {
        f"{name}.{part}" for name in in_train_mode for part in ("running_mean", "running_var", "num_batches_tracked")
    }
