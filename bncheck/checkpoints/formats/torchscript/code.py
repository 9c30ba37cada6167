"""Finds the calls of batch_norm in the code that a TorchScript archive holds, without running it.

TorchScript prints its code as Python with one statement on each line and a new name for nearly every value, so that
reading it line by line is enough. Python's own parser would not do: it recurses over what the file nests. What is
assigned twice (in the branches of an `if`, in a loop) has no value here, with the one exception that
`torch.nn.BatchNorm2d` itself prints.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Scalar = bool | int | float | None

# Statements and expressions longer than any that matters here are passed over.
MAX_LINE = 2**16
MAX_EXPRESSION = 500
MAX_NUMBER = 40
# Modules nest a handful of levels.
MAX_PATH = 100
# A method calls functional.batch_norm by one or two names.
MAX_ALIASES = 8
# Calls as the arguments of calls, and lists in them.
MAX_NESTING = 500
# Parentheses and getattr around the name of one value.
MAX_WRAPPINGS = 16


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute reached from the module: `("bn", "running_mean")` is `self.bn.running_mean`."""

    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorConstant:
    """An element of constants.pkl."""

    index: int


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, a truth value or None."""

    value: Scalar


@dataclass(frozen=True, slots=True)
class Unresolved:
    """Anything else."""


@dataclass(frozen=True, slots=True)
class Functional:
    """The function `torch.nn.functional.batch_norm`, whose arguments stand in an order of their own."""


Value = Attribute | TensorConstant | Literal | Unresolved | Functional
UNRESOLVED = Unresolved()
FUNCTIONAL = Functional()


@dataclass(frozen=True, slots=True)
class BatchNormCall:
    """One call of batch_norm in a method of a class."""

    method: str
    weight: Value
    bias: Value
    running_mean: Value
    running_var: Value
    training: Value
    momentum: Value
    eps: Value


@dataclass(slots=True)
class ClassCode:
    """What the code of a class says: its constants (`eps : Final[float] = 1e-05`) and its calls of batch_norm."""

    constants: dict[str, Scalar] = field(default_factory=dict)
    calls: list[BatchNormCall] = field(default_factory=list)


CLASS = re.compile(r"class (\w+)\(")
METHOD = re.compile(r"  def (\w+)\((\w+)")
CONSTANT = re.compile(r"  (\w+) : Final\[\w+\] = (.+)")
ASSIGNMENT = re.compile(r" +(\w+) = (.+)")
CONDITION = re.compile(r" +if (\w+):")
# A string that is not closed ends with the line, so that the expression takes linear time on any text.
STRING = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?$)')
NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?")
# annotate(Optional[Tensor], x) and unchecked_cast(Tensor, x) are x
CAST = re.compile(r"(?:annotate|unchecked_cast)\([\w.\[\]]+, (.*)\)")
IN_PARENTHESES = re.compile(r'(?<![\w)\]])\(([\w."]+)\)')
GETATTR = re.compile(r'\bgetattr\(([\w."]+), ("\d+")\)')
DOTTED = re.compile(r'\w+(?:\.(?:\w+|"\d+"))*')
TENSOR_CONSTANT = re.compile(r"CONSTANTS\.c(\d{1,9})")
FUNCTIONAL_NAME = re.compile(r"__torch__\.torch\.nn\.functional\.(?:___torch_mangle_\d+\.)?batch_norm")
BRACKET = re.compile(r"[()\[\]{},]")
OPERATORS = ("torch.batch_norm", "torch.native_batch_norm", "torch._batch_norm_impl_index")

OPERATOR_ORDER = ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
FUNCTIONAL_ORDER = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
WORDS: dict[str, Scalar] = {"True": True, "False": False, "None": None}


def read_classes(text: str, most_calls: int) -> dict[str, ClassCode]:
    """The classes in the text of one code file, by name, with at most so many calls in all."""
    classes: dict[str, ClassCode] = {}
    left = most_calls
    code: ClassCode | None = None
    method: tuple[str, str, list[str]] | None = None  # name, what it calls self, lines
    for line in [*text.split("\n"), ""]:
        if line.startswith("    "):
            if method:
                method[2].append(line)
            continue
        if code and method:
            calls = list(islice(read_method(*method), left))
            code.calls.extend(calls)
            left -= len(calls)
        method = None
        if line.startswith("  "):
            if code is None:
                continue
            if match := METHOD.match(line):
                method = match[1], match[2], []
            elif match := CONSTANT.fullmatch(line):
                constant = literal(match[2])
                if constant:
                    code.constants[match[1]] = constant.value
        elif line:
            match = CLASS.match(line)
            code = classes.setdefault(match[1], ClassCode()) if match else None
    return classes


def read_method(name: str, self_name: str, lines: list[str]) -> Iterator[BatchNormCall]:
    """The calls of batch_norm in the lines of a method."""
    if not any("batch_norm" in line for line in lines):
        return
    lines = [line for line in lines if len(line) <= MAX_LINE]
    assigned = Counter(target for line in lines for target in targets(line))
    values: dict[str, Value] = {self_name: Attribute(())}
    aliases: list[str] = []
    for index, line in enumerate(lines):
        masked, strings = mask(line)
        if "batch_norm(" in masked or any(f"{alias}(" in masked for alias in aliases):
            for callee, arguments in calls_in(masked, (*OPERATORS, *aliases)):
                order = OPERATOR_ORDER if callee in OPERATORS else FUNCTIONAL_ORDER
                passed = [evaluate(argument, values, strings) for argument in arguments[1 : len(order) + 1]]
                if len(passed) == len(order):
                    yield BatchNormCall(name, **dict(zip(order, passed, strict=True)))
        if match := ASSIGNMENT.fullmatch(masked):
            target, expression = match[1], match[2]
            if assigned[target] == 1 and target != self_name:
                values[target] = evaluate(expression, values, strings)
                if values[target] == FUNCTIONAL and len(aliases) < MAX_ALIASES:
                    aliases.append(target)
        elif match := CONDITION.fullmatch(line):
            named = truth_of_condition(lines[index + 1 : index + 4])
            if named and assigned[named] == 2 and named != self_name:
                values[named] = values.get(match[1], UNRESOLVED)


def targets(line: str) -> list[str]:
    """The names that a statement assigns: `x = ...` or `x, y, = ...`."""
    left, equals, _ = line[:MAX_EXPRESSION].partition(" = ")
    return [name.strip() for name in left.split(",")] if equals else []


def truth_of_condition(lines: Sequence[str]) -> str | None:
    """The name that is True in the first branch of an `if` and False in the other: the condition by another name."""
    if len(lines) < 3 or lines[1].strip() != "else:":
        return None
    first, second = ASSIGNMENT.fullmatch(lines[0]), ASSIGNMENT.fullmatch(lines[2])
    if first and second and first[1] == second[1] and (first[2], second[2]) == ("True", "False"):
        return first[1]
    return None


def mask(line: str) -> tuple[str, list[str]]:
    """The line with a number in place of what each string holds, and what they hold."""
    if '"' not in line:
        return line, []
    strings: list[str] = []

    def replace(match: re.Match[str]) -> str:
        strings.append(match[0][1:].removesuffix('"'))
        return f'"{len(strings) - 1}"'

    return STRING.sub(replace, line), strings


def calls_in(text: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """The name and the arguments of each call of one of the wanted functions, however calls are nested."""
    opened: list[tuple[str, list[int]] | None] = []  # of a wanted call its name, and where its bracket and commas are
    for match in BRACKET.finditer(text):
        character, place = match[0], match.start()
        if character in "([{":
            name = name_before(text, place, wanted) if character == "(" else ""
            opened.append((name, [place]) if name else None)
            if len(opened) > MAX_NESTING:
                return
        elif not opened:
            continue  # the commas of `x, y, = ...`
        elif character == ",":
            if innermost := opened[-1]:
                innermost[1].append(place)
        elif closed := opened.pop():
            name, places = closed
            places.append(place)
            yield name, [text[before + 1 : after] for before, after in pairwise(places[:10])]


def name_before(text: str, place: int, wanted: tuple[str, ...]) -> str:
    """Which of the wanted names stands before a bracket; "" if none does."""
    if not text.endswith(wanted, 0, place):
        return ""
    for name in wanted:
        start = place - len(name)
        if text.startswith(name, max(start, 0)) and not (
            start > 0 and (text[start - 1].isalnum() or text[start - 1] in "._")
        ):
            return name
    return ""


def evaluate(expression: str, values: Mapping[str, Value], strings: Sequence[str]) -> Value:
    """The value of an expression whose strings are masked."""
    text = expression.strip()
    if len(text) > MAX_EXPRESSION:
        return UNRESOLVED
    for _ in range(MAX_WRAPPINGS):
        match = CAST.fullmatch(text)
        shorter = match[1] if match else GETATTR.sub(r"\1.\2", IN_PARENTHESES.sub(r"\1", text))
        if shorter == text:
            break
        text = shorter
    constant = literal(text)
    if constant:
        return constant
    if FUNCTIONAL_NAME.fullmatch(text):
        return FUNCTIONAL
    if match := TENSOR_CONSTANT.fullmatch(text):
        return TensorConstant(int(match[1]))
    if not DOTTED.fullmatch(text):
        return UNRESOLVED
    head, *rest = text.split(".")
    value = values.get(head, UNRESOLVED)
    if not rest:
        return value
    if not isinstance(value, Attribute) or len(value.path) + len(rest) > MAX_PATH:
        return UNRESOLVED
    names = [strings[int(part.strip('"'))] if part.startswith('"') else part for part in rest]
    return Attribute((*value.path, *names))


def literal(text: str) -> Literal | None:
    """A number, a truth value or None as TorchScript prints them."""
    if text in WORDS:
        return Literal(WORDS[text])
    if len(text) <= MAX_NUMBER and NUMBER.fullmatch(text):
        return Literal(int(text) if text.lstrip("-").isdigit() else float(text))
    return None
