"""The layers that the nodes of a graph make, and which of them feeds which."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from bncheck.checkpoints.contents.connections import RELU, RELU6, Joined, Trail, is_linear, is_pointwise
from bncheck.checkpoints.contents.kinds import KIND_BY_DIMENSIONS, UNTOLD
from bncheck.checkpoints.contents.modules import BATCH_NORM
from bncheck.checkpoints.contents.state_dicts import STATISTICS, prefix_stripper, read_tensors
from bncheck.checkpoints.formats.onnx_model.graph import PARTS, STANDARD_DOMAINS, Call, Node, batchnorm_calls, nodes_of
from bncheck.checkpoints.formats.onnx_model.weights import Weight, check_external, parsed, tensor_of
from bncheck.errors import DAMAGED_HINT, UnreadableError
from bncheck.subjects.checkpoint import Connection, Group, Tensor
from bncheck.subjects.layer import BatchNormLayer, inferred, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bncheck.checkpoints.sources import Source

    # Messages of the package onnx, which makes its classes when it is imported.
    Message = Any

# By PyTorch's names.
CONV_ATTRIBUTES = {"stride": "strides", "padding": "pads"}


def group_of(source: Source, model: Message, weights: Sequence[Weight]) -> Group:
    """The group that the graph of a model makes."""
    check_external(source, model.graph.initializer)
    tensors = {weight.name: tensor_of(source, weight) for weight in weights}
    if len(tensors) != len(weights):
        raise UnreadableError(f"{source.name} has two weights of one name", DAMAGED_HINT)
    strip = prefix_stripper(tensors)
    layers = Layers(source, strip)
    names = [layers.add(call) for call in batchnorm_calls(model, weights, source.name)]
    return Group(
        "",
        "module",
        {strip(key): tensor for key, tensor in tensors.items()},
        tuple(layers.made.values()),
        connections=partial(connections_of, source, names),
    )


class Layers:
    """The layers of the model by name. A layer that is called twice is one."""

    def __init__(self, source: Source, strip: Callable[[str], str]) -> None:
        self.source = source
        self.strip = strip
        self.made: dict[str, BatchNormLayer] = {}
        self.weights: dict[str, tuple[str, ...]] = {}

    def add(self, call: Call) -> str:
        """Takes note of a call; the name of its layer."""
        name = layer_name(call)
        weights = tuple(call.weights[part].name if part in call.weights else "" for part in PARTS)
        if self.weights.get(name, weights) != weights:
            name = call.node  # exporters let equal weights of several layers share one name
        if name not in self.made or call.training.value:
            self.weights[name] = weights
            self.made[name] = self.layer(name, call)
        return self.made[name].name

    def layer(self, name: str, call: Call) -> BatchNormLayer:
        own = {
            part: tensor_of(self.source, weight) for part, weight in call.weights.items() if part not in call.computed
        }
        for part in STATISTICS:
            if part not in own and part not in call.computed:
                own[part] = Tensor("unknown", (), None)  # made from weights, or an input of the model
        statistic = own.get("running_mean")
        class_path = call.classes[-2] if len(call.classes) > 1 else ""
        kind = class_path.rpartition(".")[2]
        named = bool(BATCH_NORM.search(kind))
        channels = call.shape[1] if len(call.shape) > 1 else None
        return BatchNormLayer(
            name=self.strip(name),
            group="",
            stored_name=name,
            kind=stored(kind) if named else inferred(KIND_BY_DIMENSIONS.get(len(call.shape), UNTOLD)),
            class_path=class_path if named else None,
            num_features=next(
                (tensor.size for tensor in own.values() if tensor.read is not None),
                channels if isinstance(channels, int) and channels else None,
            ),
            eps=call.eps,
            momentum=call.momentum,
            affine=inferred(True),  # the inputs are always there
            track_running_stats=inferred(not call.computed),
            training=call.training,
            baked=True,
            dtype=statistic.dtype if statistic and statistic.read is not None else None,
            **read_tensors(own),
        )


def layer_name(call: Call) -> str:
    """The name of the module that a node was, by what the exporter wrote, or by the names of its weights."""
    if len(call.scopes) > 1 and len(call.scopes) == len(call.classes) and BATCH_NORM.search(call.classes[-2]):
        return call.scopes[-2]
    for parts in (STATISTICS, ("weight", "bias")):
        votes: Counter[str] = Counter()
        for part in parts:
            weight = call.weights.get(part)
            for given in (call.names[part], weight.name if weight else ""):
                prefix, _, last = given.rpartition(".")
                if prefix and last == part:
                    votes[prefix] += 1
                    break
        if votes:
            return votes.most_common(1)[0][0]
    return call.node


# -- which layer feeds which


def connections_of(source: Source, names: Sequence[str]) -> tuple[Connection, ...]:
    """The pairs of layers that the graph joins; it is read once more, as few ask for them.

    Args:
        source: the model.
        names: those of the layers of its calls of BatchNormalization, in the order of the calls.
    """
    model, weights = parsed(source)
    joined = Joined(source.name)
    coming = iter(names)
    for node in nodes_of(model, weights, source.name):
        trails = node.scope.trails
        trail = trails.get(node.node.input[0]) if node.node.input else None
        if node.batchnorm_call():
            onward = joined.normalised(trail, next(coming, None))
        elif trail and node.node.domain in STANDARD_DOMAINS:
            onward = trail_through(source, trail, node)
        else:
            onward = None
        if onward and node.node.output:
            trails[node.node.output[0]] = onward
    return joined.connections()


def trail_through(source: Source, trail: Trail, node: Node) -> Trail | None:
    """Where a trail leads through a node, other than BatchNormalization."""
    kind, attributes = node.node.op_type, node.attributes
    if kind == "Relu":
        return trail.activated(RELU)
    if kind == "Clip":
        return trail.activated(RELU6 if bounds_of(source, node) == (0, 6) else None)
    names = [*node.node.input[1:3], "", ""][:2]  # the bias may be left out
    given = [node.scope.find(name) if name else None for name in names]
    if given[0] is None or (names[1] and given[1] is None):
        return None
    weight, bias = (tensor_of(source, known) if known else None for known in given)
    if kind == "Conv":
        settings = {name: list(attributes[old].ints) for name, old in CONV_ATTRIBUTES.items() if old in attributes}
        groups = attributes["group"].i if "group" in attributes else 1
        padded = "auto_pad" in attributes and attributes["auto_pad"].s not in (b"NOTSET", b"VALID")
        fits = is_pointwise(weight, {**settings, "groups": groups}) and not padded
        return trail.mixed(weight, bias) if fits else None
    if kind == "Gemm":
        numbers = {name: attributes[name].i for name in ("transA", "transB") if name in attributes}
        scales = [attributes[name].f for name in ("alpha", "beta") if name in attributes]
        as_in_torch = numbers.get("transB") == 1 and not numbers.get("transA") and set(scales) <= {1.0}
        return trail.mixed(weight, bias) if as_in_torch and is_linear(weight, two_dimensional=True) else None
    return None


def bounds_of(source: Source, node: Node) -> tuple[float | None, float | None]:
    """The smallest and the largest output of a Clip; None where it is not known."""
    bounds = [node.attributes[name].f if name in node.attributes else None for name in ("min", "max")]
    for place, name in enumerate(node.node.input[1:3]):
        bound = node.scope.find(name)
        tensor = tensor_of(source, bound) if bound else None
        bounds[place] = float(tensor.read().reshape(-1)[0]) if tensor and tensor.read and tensor.size == 1 else None
    return bounds[0], bounds[1]
