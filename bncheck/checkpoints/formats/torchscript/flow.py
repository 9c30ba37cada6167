"""Follows values through the code of a TorchScript archive, from one BatchNorm to the next, without running it.

A method is walked line by line, with modules and their attributes as they are in the file. Calls of the methods of
modules are walked into. What a tensor is, is known only as its trail: which BatchNorm made it, and what it passed
since. Whatever is not understood ends the trail of all that it touches.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from bncheck.checkpoints.contents.connections import (
    ACTIVATIONS,
    CONVOLUTIONS,
    HARMLESS,
    Joined,
    Trail,
    activation_of,
    is_linear,
    is_pointwise,
)
from bncheck.checkpoints.contents.modules import walk
from bncheck.checkpoints.contents.state_dicts import TENSORS
from bncheck.checkpoints.contents.torch_objects import TensorRecord
from bncheck.checkpoints.encodings.pickles import Dictionary, Object
from bncheck.checkpoints.formats.torchscript.code import CLASS, FUNCTIONAL_ORDER, METHOD, OPERATOR_ORDER
from bncheck.checkpoints.formats.torchscript.tree import MANGLE, child_of, is_of_torch, part_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bncheck.subjects.checkpoint import Tensor

# Statements that are longer, or nest their calls deeper, are not understood. Sixteen networks of torchvision and timm
# come to a depth of 14.
MAX_STATEMENT = 4096
MAX_DEPTH = 60
# Statements and expressions that are walked in all, those of a method once for each call of it. A DenseNet-121 has
# 11,000.
MAX_STEPS = 300_000
CHARACTERS_OF_STEP = 64

BLOCK = re.compile(r"( *)(if|else|for|while|with)\b ?(.*):")
CONVOLUTION_ORDER = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSABLE_ORDER = (*CONVOLUTION_ORDER[:-1], "transposed", "output_padding", "groups")
ORDERS = {
    "conv1d": CONVOLUTION_ORDER,
    "conv2d": CONVOLUTION_ORDER,
    "conv3d": CONVOLUTION_ORDER,
    "convolution": TRANSPOSABLE_ORDER,
    "_convolution": TRANSPOSABLE_ORDER,
    "linear": ("input", "weight", "bias"),
    "batch_norm": ("input", *OPERATOR_ORDER),
    "relu": ("input",),
    "relu6": ("input",),
    "hardtanh": ("input", "min_val", "max_val"),
}
# Of numbers, truth values, texts and None: what a condition may ask of the attributes of a module.
COMPARISONS: dict[str, Callable[..., bool]] = {
    "eq": lambda *values: len(set(values)) == 1,
    "ne": lambda *values: len(set(values)) > 1,
    "__is__": lambda *values: len(set(values)) == 1,
    "__isnot__": lambda *values: len(set(values)) > 1,
    "__not__": lambda *values: not any(values),
}
Scalar = (bool, int, float, str, type(None))
# In torch.nn.functional, the argument `inplace` takes the part of the underscore.
FUNCTIONAL = "__torch__.torch.nn.functional."
FUNCTIONAL_ORDERS = {
    "batch_norm": ("input", *FUNCTIONAL_ORDER),
    "relu": ("input", "inplace"),
    "relu6": ("input", "inplace"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
}


@dataclass(slots=True, eq=False)
class Value:
    """A tensor, or anything else of which only the trail matters, if it has one."""

    trail: Trail | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A parameter or buffer of a module."""

    holder: Object
    name: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the archive, by its path."""

    path: str


# A module is an Object; numbers, truth values, texts and None are themselves; lists are tuples.
Known: TypeAlias = "Value | Stored | Function | Object | tuple[Known, ...] | bool | int | float | str | None"
Names = dict[str, "Known"]


@dataclass(frozen=True, slots=True)
class Method:
    """The names of the arguments of a method, self first, and the lines below its head."""

    arguments: tuple[str, ...]
    lines: tuple[str, ...]


class NotFollowedError(Exception):
    """The code is longer, nests deeper or branches more than what torch writes."""


# -- the text


def methods_of(text: str) -> dict[str, dict[str, Method]]:
    """The methods in the text of a code file, by class and name."""
    classes: dict[str, dict[str, Method]] = {}
    inside: dict[str, Method] | None = None
    name, lines = "", list[str]()
    for line in [*text.split("\n"), ""]:
        if line.startswith("    "):
            lines.append(line)
            continue
        if inside is not None and name:
            method = method_from(lines)
            if method:
                inside[name] = method
        name, lines = "", []
        if line.startswith("  "):
            match = METHOD.match(line)
            if match:
                name, lines = match[1], [line]
        elif line:
            match = CLASS.match(line)
            inside = classes.setdefault(match[1], {}) if match else None
    return classes


def method_from(lines: Sequence[str]) -> Method | None:
    """A method whose head may take several lines."""
    head = next((place for place, line in enumerate(lines) if line.endswith(":")), len(lines))
    parsed = parse(" ".join(line.strip() for line in lines[: head + 1]) + " pass")
    if not isinstance(parsed, ast.FunctionDef):
        return None
    return Method(tuple(argument.arg for argument in parsed.args.args), tuple(lines[head + 1 :]))


def parse(text: str) -> ast.stmt | None:
    """A statement as Python reads it; None where it is none. Short ones nest no deeper than Python's parser can go."""
    if len(text) > MAX_STATEMENT:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes in strings
            statements = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return statements[0] if len(statements) == 1 else None


# -- the walk


@dataclass(slots=True)
class Flow:
    """A walk through the code.

    Args:
        methods: gives those of a module by name.
        layers: the names of the BatchNorm layers by the identity of their module.
        tensor: gives the tensor that a module stores under a name.
        joined: takes down what is found.
    """

    methods: Callable[[Object], Mapping[str, Method]]
    layers: Mapping[int, str]
    tensor: Callable[[TensorRecord], Tensor]
    joined: Joined
    steps: int = 0
    depth: int = 0
    parsed: dict[str, ast.stmt | None] = field(default_factory=dict)

    def follow(self, root: Object) -> None:
        """Walks through the forward of a model. NotFollowedError if that takes too many steps."""
        method = self.methods(root).get("forward")
        if method:
            self.call_method(root, method, [Value() for _ in method.arguments[1:]])

    def step(self, steps: int = 1) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise NotFollowedError

    @contextmanager
    def deeper(self) -> Iterator[None]:
        if self.depth == MAX_DEPTH:
            raise NotFollowedError
        self.depth += 1
        yield
        self.depth -= 1

    def spoil(self, *values: Known) -> None:
        """Something unknown may change these tensors, or call these modules."""
        waiting = list(values)
        while waiting:
            self.step()
            value = waiting.pop()
            if isinstance(value, Value):
                value.trail = None
            elif isinstance(value, tuple):
                waiting.extend(value)
            elif isinstance(value, Object):
                for _, module, _ in walk(value):
                    self.step()
                    if id(module) in self.layers:
                        self.joined.calls[self.layers[id(module)]] += 2  # nobody knows how often

    # -- statements

    def call_method(self, module: Object, method: Method, arguments: Sequence[Known]) -> Known:
        if len(arguments) > len(method.arguments) - 1:
            self.spoil(module, *arguments)
            return Value()
        names: Names = dict(zip(method.arguments, [module, *arguments], strict=False))
        returned = self.run(method.lines, names)
        return returned[0] if returned else Value()

    def run(self, lines: Sequence[str], names: Names) -> tuple[Known] | None:
        """Walks through the lines of a block; what it returns, in a tuple of one, if it does return."""
        place = 0
        while place < len(lines):
            self.step()
            match = BLOCK.fullmatch(lines[place])
            if not match:
                returned = self.statement(lines[place], names)
                if returned:
                    return returned
                place += 1
                continue
            end = end_of_block(lines, place)
            otherwise = range(0)
            if match[2] == "if" and end < len(lines) and lines[end] == f"{match[1]}else:":
                otherwise = range(end + 1, end_of_block(lines, end))
            self.step((otherwise.stop or end) - place)
            chosen = self.truth(match[3], names) if match[2] == "if" else None
            if chosen is None:
                self.pass_over(lines[place : otherwise.stop or end], names)
            else:
                branch = lines[place + 1 : end] if chosen else lines[otherwise.start : otherwise.stop]
                with self.deeper():
                    returned = self.run(branch, names)
                if returned:
                    return returned
            place = otherwise.stop or end
        return None

    def truth(self, condition: str, names: Names) -> bool | None:
        """The value of a condition that is a constant or an attribute of a module."""
        parsed = self.parse(condition)
        value = self.evaluate(parsed.value, names) if isinstance(parsed, ast.Expr) else None
        return value if isinstance(value, bool) else None

    def parse(self, line: str) -> ast.stmt | None:
        if line not in self.parsed:
            self.parsed[line] = parse(line)
        return self.parsed[line]

    def statement(self, line: str, names: Names) -> tuple[Known] | None:
        match self.parse(line):
            case ast.Return(value=None):
                return (None,)
            case ast.Return(value=ast.expr() as value):
                return (self.evaluate(value, names),)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names[name] = self.evaluate(value, names)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                made = self.evaluate(value, names)
                parts = made if isinstance(made, tuple) and len(made) == len(targets) else None
                if parts is None:
                    self.spoil(made)
                for index, target in enumerate(targets):
                    if isinstance(target, ast.Name):
                        names[target.id] = parts[index] if parts else Value()
            case ast.Expr(value=value):
                self.evaluate(value, names)
            case ast.Pass():
                pass
            case _:
                self.pass_over([line], names)
        return None

    def pass_over(self, lines: Sequence[str], names: Names) -> None:
        """Takes note that code was not understood: what it names is no longer known."""
        self.step(len(lines) + sum(map(len, lines)) // CHARACTERS_OF_STEP)
        words = {word for line in lines for word in re.findall(r"\w+", line)}
        self.spoil(*(names[word] for word in sorted(words) if word in names))
        for word in words:
            if not isinstance(names.get(word), (Object, Function)):
                names[word] = Value()
        if "return" in words:
            raise NotFollowedError  # torch writes one at the end of a method

    # -- expressions

    def evaluate(self, node: ast.expr, names: Names) -> Known:
        self.step()
        with self.deeper():
            return self.evaluate_inside(node, names)

    def evaluate_inside(self, node: ast.expr, names: Names) -> Known:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.Name(id=name):
                return names.get(name, Value())
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return tuple(self.evaluate(part, names) for part in parts)
            case ast.Attribute():
                return self.attribute(node, names)
            case ast.Subscript(value=listed, slice=ast.Constant(value=int() as index)):
                values = self.evaluate(listed, names)
                if isinstance(values, tuple) and -len(values) <= index < len(values):
                    return values[index]
                self.spoil(values)
                return Value()
            case ast.Call(func=function, args=arguments, keywords=keywords):
                return self.call(function, arguments, keywords, names)
            case _:
                self.spoil(*(self.evaluate(part, names) for part in expressions_in(node)))
                return Value()

    def attribute(self, node: ast.Attribute, names: Names) -> Known:
        path = dotted(node)
        if path and path[0] == "__torch__":
            return Function(".".join(path))
        if path and path[0] not in names:
            return Value()  # CONSTANTS.c0
        return self.member(self.evaluate(node.value, names), node.attr)

    def member(self, holder: Known, name: str) -> Known:
        """An attribute of a module, as the file holds it."""
        if not isinstance(holder, Object):
            self.spoil(holder)
            return Value()
        child = child_of(holder, name)
        if child:
            return child
        buffers = part_of(holder, "_buffers")
        if name in buffers:
            return Stored(holder, name) if isinstance(buffers[name], TensorRecord) else None
        state = holder.state
        value = state.get(name) if isinstance(state, Dictionary) else None
        return value if isinstance(value, (bool, int, float, str)) else Value()

    def call(
        self, function: ast.expr, arguments: Sequence[ast.expr], keywords: Sequence[ast.keyword], names: Names
    ) -> Known:
        path = dotted(function)
        if path in (["annotate"], ["unchecked_cast"]) and len(arguments) == 2:
            return self.evaluate(arguments[1], names)
        if path == ["getattr"] and len(arguments) == 2:
            attribute = self.evaluate(arguments[1], names)
            return self.member(self.evaluate(arguments[0], names), attribute if isinstance(attribute, str) else "")
        operator = path[1] if path and path[0] == "torch" and len(path) == 2 and "torch" not in names else None
        called, method = None, ""
        if isinstance(function, ast.Attribute) and not operator and not (path and path[0] == "__torch__"):
            called, method = self.evaluate(function.value, names), function.attr
        elif not operator:
            called = self.evaluate(function, names)
        given = [self.evaluate(argument, names) for argument in arguments]
        named = {word.arg or "": self.evaluate(word.value, names) for word in keywords}
        if operator:
            order = ORDERS.get(operator.removesuffix("_"), ())
            return self.operator(operator, given, dict(zip(order, given, strict=False)) | named, named)
        if isinstance(called, Function) and not method:
            return self.function(MANGLE.sub("", called.path), given, named)
        if isinstance(called, Object) and not named:
            if method == "forward" and is_of_torch(called) and len(given) == 1:
                return self.batch_norm(given[0], self.layers.get(id(called)))
            code = self.methods(called).get(method)
            if code:
                return self.call_method(called, code, given)
        self.spoil(called, *given, *named.values())
        return Value()

    def function(self, path: str, given: Sequence[Known], named: Mapping[str, Known]) -> Known:
        """A call of a function of torch.nn.functional; what others do is not followed."""
        operator = path.removeprefix(FUNCTIONAL)
        order = FUNCTIONAL_ORDERS.get(operator, ()) if path.startswith(FUNCTIONAL) else ()
        arguments = dict(zip(order, given, strict=False)) | dict(named)
        if not order or not isinstance(arguments.get("inplace", False), bool):
            self.spoil(*given, *named.values())
            return Value()
        return self.operator(operator + "_" * bool(arguments.get("inplace")), given, arguments, named)

    def operator(
        self, operator: str, given: Sequence[Known], arguments: Mapping[str, Known], named: Mapping[str, Known]
    ) -> Known:
        """A call of an operator of PyTorch, by the name without `torch.`."""
        if operator in COMPARISONS and all(isinstance(value, Scalar) for value in given):
            return COMPARISONS[operator](*given)
        name = operator.removesuffix("_")
        source = arguments.get("input")
        trail = source.trail if isinstance(source, Value) else None
        if operator not in HARMLESS:  # that of an in-place operator among them
            self.spoil(*given, *named.values())
        if name == "batch_norm":
            return self.batch_norm(source, self.layer_of(arguments))
        if trail is None:
            return Value()
        if name in ACTIVATIONS:
            return Value(trail.activated(activation_of(name, arguments)))
        if operator in CONVOLUTIONS or operator == "linear":
            weight, bias = self.stored(arguments.get("weight")), self.stored(arguments.get("bias"))
            fits = is_linear(weight, two_dimensional=False) if operator == "linear" else is_pointwise(weight, arguments)
            known = arguments.get("bias") is None or bias is not None
            return Value(trail.mixed(weight, bias) if fits and known else None)
        return Value()

    def batch_norm(self, source: Known, layer: str | None) -> Value:
        return Value(self.joined.normalised(source.trail if isinstance(source, Value) else None, layer))

    def layer_of(self, arguments: Mapping[str, Known]) -> str | None:
        """The layer whose tensors, all of them and in their places, a call of batch_norm is given."""
        given = {part: arguments.get(part) for part in TENSORS}
        stored = {part: value for part, value in given.items() if isinstance(value, Stored)}
        holders = {id(value.holder): value.holder for value in stored.values()}
        if len(holders) == 1:
            [holder] = holders.values()
            buffers = part_of(holder, "_buffers")
            own = {part: Stored(holder, part) if buffers.get(part) is not None else None for part in TENSORS}
            if given == own:
                return self.layers.get(id(holder))
        self.spoil(*holders.values())
        return None

    def stored(self, value: Known) -> Tensor | None:
        record = part_of(value.holder, "_buffers").get(value.name) if isinstance(value, Stored) else None
        return self.tensor(record) if isinstance(record, TensorRecord) else None


def end_of_block(lines: Sequence[str], place: int) -> int:
    """The first line after `place` that is not indented deeper."""
    indent = len(lines[place]) - len(lines[place].lstrip(" "))
    end = place + 1
    while end < len(lines) and (lines[end].startswith(" " * (indent + 1)) or not lines[end].strip()):
        end += 1
    return end


def dotted(node: ast.expr) -> list[str]:
    """The parts of a name with dots; none for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def expressions_in(node: ast.AST) -> Iterator[ast.expr]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield child
