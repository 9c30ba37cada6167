"""Reads a pickle without running it.

The opcodes, tokenised by the standard library's `pickletools`, are interpreted here on a stack of inert
values: a global becomes a `Global` (its name and nothing more), a call becomes an `Object` that remembers
what would have been called. Nothing is imported and nothing of the file is ever executed.

A subclass of `pickle.Unpickler` would not do: its memo is an array, so that eleven bytes naming entry 2**28
take gigabytes, and it hashes whatever the file uses as a key, which ends the process for a tuple that is
nested deeply enough. Here the memo is a dict, only scalars are hashed, and sizes are bounded.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bncheck.errors import DAMAGED_HINT, UnreadableError
from bncheck.subjects.checkpoint import GlobalReference, Use

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The largest pickle that is read. Tensors lie outside the pickle, so that real ones are small (a ResNet-50
# state_dict: 30 kB); the bound keeps memory bounded for a file that was made to exhaust it.
MAX_BYTES = 32 * 2**20
# A million opcodes are interpreted in about two seconds; a ResNet-50 has 10,900.
MAX_OPCODES = 1_000_000
# Functions and classes that one pickle refers to; a model has some dozens.
MAX_GLOBALS = 10_000

# The longest dotted name of a function or class.
MAX_NAME_LENGTH = 1000
# What C's unpickler allows, and keeps numbers with equal hashes out of the memo.
MAX_MEMO_INDEX = 2**32
# Constructors take fewer.
MANY_ARGUMENTS = 20
# Larger numbers can be made to have equal hashes, which turns a dict into a list.
MAX_KEY_BITS = 60

# These make an object from its class without calling the class.
RECONSTRUCTORS = {
    (module, name) for module in ("copyreg", "copy_reg") for name in ("_reconstructor", "__newobj__", "__newobj_ex__")
}
# Bases of objects that protocol 0 and 1 make anew; those of other classes have their __init__ called.
PLAIN_BASES = {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("object", "dict", "list", "tuple", "set", "str", "unicode", "int", "float")
}


class Global:
    """The name of a function or class that the file refers to. Compared by identity."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


class Object:
    """What the file would have made by calling `maker` with `args`.

    `state` is what it would have been given by `__setstate__`, `entries` the pairs set on it like on a dict,
    `elements` the values appended to it like to a list.
    """

    __slots__ = ("args", "elements", "entries", "maker", "state")

    def __init__(self, maker: object, args: tuple[object, ...]) -> None:
        self.maker = maker
        self.args = args
        self.state: object = None
        self.entries: list[tuple[object, object]] = []
        self.elements: list[object] = []

    @property
    def class_path(self) -> str | None:
        """The dotted path of the class or function that makes it, None where that is computed."""
        return self.maker.path if isinstance(self.maker, Global) else None


class Dictionary(dict[object, object]):
    """A dict or OrderedDict of the file; `attributes` are those set on it, such as `_metadata`."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        super().__init__()
        self.attributes: object = None


class Unhashable:
    """A dict key that is no scalar: kept, but compared by identity."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


@dataclass(slots=True)
class Pickle:
    """A pickle as it was read: its value, where it ends, and the globals it would import."""

    value: object
    end: int
    globals: set[GlobalReference] = field(default_factory=set)


class Damaged(Exception):
    """The opcodes make no sense; raised and translated inside this module and by constructors."""


def as_key(value: object) -> object:
    """A value that is cheap to hash, and equal for equal scalars. Tuples are not: their hashes can be chosen."""
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_KEY_BITS else Unhashable(value)
    if isinstance(value, (str, float, bytes)) or value is None:
        return value
    return Unhashable(value)


class Interpreter:
    """Interprets one pickle.

    Args:
        constructors: by (module, name), functions of ours that stand in for harmless functions of the
            file, such as `torch._utils._rebuild_tensor_v2`. Called with the arguments in the file; they
            may raise Damaged.
        persistent: what stands for a persistent id, given the id. It may raise Damaged.
    """

    def __init__(
        self,
        constructors: Mapping[tuple[str, str], Callable[..., object]],
        persistent: Callable[[object], object],
    ) -> None:
        self.constructors = constructors
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, object] = {}
        self.names: dict[tuple[str, str], Global] = {}
        self.uses: set[tuple[str, str, Use]] = set()
        self.argument_elements = 0

    def run(self, data: bytes, start: int = 0) -> Pickle:
        """The first pickle in `data` from `start` on. Raises Damaged, or ValueError from the tokeniser."""
        stream = io.BytesIO(data)
        stream.seek(start)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise Damaged(f"it has more than {MAX_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                break
            try:
                HANDLERS[opcode.name](self, argument)
            except IndexError:
                raise Damaged(f"{opcode.name} finds the stack empty") from None
            except KeyError:
                raise Damaged(f"{opcode.name} is not understood") from None
        if not self.stack:
            raise Damaged("it ends without a value")
        references = {GlobalReference(module, name, use.value) for module, name, use in self.uses}
        # Referring to a class is part of instantiating or calling it.
        used = {(r.module, r.name) for r in references if r.use != Use.REFERENCED.value}
        kept = {r for r in references if r.use != Use.REFERENCED.value or (r.module, r.name) not in used}
        return Pickle(self.stack[-1], stream.tell(), kept)

    # -- the stack

    def pop_to_mark(self) -> list[Any]:
        if not self.marked:
            raise Damaged("a mark is missing")
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def mark(self, _: object) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def pop_mark(self, _: object) -> None:
        self.pop_to_mark()

    def duplicate(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def push(self, argument: object) -> None:
        self.stack.append(argument)

    def nothing(self, _: object) -> None:
        pass

    # -- the memo

    def put(self, index: int) -> None:
        if index >= MAX_MEMO_INDEX:
            raise Damaged("its memo has more entries than a pickle can have")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        try:
            self.stack.append(self.memo[index])
        except KeyError:
            raise Damaged(f"entry {index} of its memo was never written") from None

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # -- containers

    def empty_dict(self, _: object) -> None:
        self.stack.append(Dictionary())

    def dict_of_items(self, _: object) -> None:
        items = self.pop_to_mark()
        self.stack.append(Dictionary())
        self.set_pairs(items)

    def set_item(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_pairs([key, value])

    def set_items(self, _: object) -> None:
        self.set_pairs(self.pop_to_mark())

    def set_pairs(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise Damaged("a dict has a key without a value")
        target = self.stack[-1]
        if isinstance(target, Dictionary):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[as_key(key)] = value
        elif isinstance(target, Object):
            target.entries.extend(zip(items[::2], items[1::2], strict=True))
        else:
            raise Damaged(f"items are set on a {type(target).__name__}")

    def empty_list(self, _: object) -> None:
        self.stack.append([])

    def list_of_items(self, _: object) -> None:
        items = self.pop_to_mark()  # first: it puts another stack in place
        self.stack.append(items)

    def append(self, _: object) -> None:
        value = self.stack.pop()
        self.extend([value])

    def appends(self, _: object) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Object):
            target.elements.extend(items)
        elif isinstance(target, list):  # a set is kept as a list, too: its elements need no hash
            target.extend(items)
        else:
            raise Damaged(f"elements are appended to a {type(target).__name__}")

    def empty_tuple(self, _: object) -> None:
        self.stack.append(())

    def tuple_of_items(self, _: object) -> None:
        items = self.pop_to_mark()
        self.stack.append(tuple(items))

    def tuple1(self, _: object) -> None:
        self.stack[-1] = (self.stack[-1],)

    def tuple2(self, _: object) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self, _: object) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    # -- globals, calls and their states

    def refer(self, module: object, name: object) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Damaged("a global is not named by text")
        key = (module, name)
        if key not in self.names:
            if len(module) + len(name) > MAX_NAME_LENGTH:
                raise Damaged(f"a global has a name of more than {MAX_NAME_LENGTH:,} characters")
            if len(self.names) >= MAX_GLOBALS:
                raise Damaged(f"it refers to more than {MAX_GLOBALS:,} globals")
            self.names[key] = Global(module, name)
        self.uses.add((module, name, Use.REFERENCED))
        return self.names[key]

    def global_by_line(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.refer(module, name))

    def global_by_stack(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.refer(module, name))

    def extension(self, argument: int) -> None:
        # The registry that resolves the number belongs to the process that loads the file.
        self.stack.append(self.refer("copyreg", f"extension_{argument}"))

    def call(self, maker: object, args: object) -> object:
        if not isinstance(args, tuple):
            raise Damaged("a call has no argument tuple")
        # A few bytes can hand the same long list to a million calls.
        self.argument_elements += len(args)
        if len(args) <= MANY_ARGUMENTS:
            for arg in args:
                if isinstance(arg, (list, tuple)):
                    self.argument_elements += len(arg)
        if self.argument_elements > MAX_OPCODES:
            raise Damaged(f"its calls have more than {MAX_OPCODES:,} arguments")
        if not isinstance(maker, Global):
            # Nobody can tell what a computed function does.
            self.uses.add(("", "a function that the file computes", Use.CALLED))
            return Object(maker, args)
        key = (maker.module, maker.name)
        if key in RECONSTRUCTORS and args:
            base = args[1] if len(args) > 1 else None
            if maker.name == "_reconstructor" and isinstance(base, Global) and base.path not in PLAIN_BASES:
                self.uses.add((base.module, base.name, Use.CALLED))  # its __init__ is
            return self.instance(args[0], args)
        if maker.name == "getattr" and maker.module in ("builtins", "__builtin__"):
            return self.attribute(args)
        self.uses.add((*key, Use.CALLED))
        constructor = self.constructors.get(key)
        if constructor is None:
            return Object(maker, args)
        try:
            return constructor(*args)
        except TypeError:
            raise Damaged(f"{maker.path} is called with arguments that do not fit it") from None

    def attribute(self, args: tuple[object, ...]) -> object:
        """`getattr(Class, "Inner")` is how protocol 2 spells a nested class, `getattr(object, "name")` a method.

        The first is again only a name; the second is harmless until it is called, which `call` notices.
        """
        name = args[1] if len(args) == 2 else None
        if isinstance(name, str):
            owner = args[0]
            if isinstance(owner, Global):
                if len(name) > MAX_NAME_LENGTH:
                    raise Damaged(f"a global has a name of more than {MAX_NAME_LENGTH:,} characters")
                return self.refer(owner.module, f"{owner.name}.{name}")
            if isinstance(owner, Object) and isinstance(owner.maker, Global):
                return Object(None, args)
        self.uses.add(("builtins", "getattr", Use.CALLED))
        return Object(None, args)

    def instance(self, cls: object, args: tuple[object, ...]) -> Object:
        if isinstance(cls, Global):
            self.uses.add((cls.module, cls.name, Use.INSTANTIATED))
        else:
            self.uses.add(("", "a class that the file computes", Use.CALLED))
        return Object(cls, args)

    def reduce(self, _: object) -> None:
        args, maker = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(maker, args))

    def inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        args = tuple(self.pop_to_mark())
        # Without arguments a class is only instantiated, but nothing says that the name is that of a class.
        self.stack.append(self.call(self.refer(module, name), args))

    def obj(self, _: object) -> None:
        items = self.pop_to_mark()
        if not items:
            raise Damaged("OBJ names no class")
        self.stack.append(self.call(items[0], tuple(items[1:])))

    def new_object(self, _: object) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple):
            raise Damaged("NEWOBJ has no argument tuple")
        self.stack.append(self.instance(cls, args))

    def new_object_ex(self, _: object) -> None:
        _keywords, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple):
            raise Damaged("NEWOBJ_EX has no argument tuple")
        self.stack.append(self.instance(cls, args))

    def build(self, _: object) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Object):
            target.state = state
        elif isinstance(target, Dictionary):
            target.attributes = state
        # Anything else (a tensor subclass, say) keeps its value: its attributes say nothing about BatchNorm.

    def persistent_by_line(self, argument: object) -> None:
        self.stack.append(self.persistent(argument))

    def persistent_by_stack(self, _: object) -> None:
        self.stack.append(self.persistent(self.stack.pop()))

    def next_buffer(self, _: object) -> None:
        raise Damaged("it refers to buffers outside the pickle")


I = Interpreter  # noqa: E741 - for the table below only
HANDLERS: dict[str, Callable[[Interpreter, Any], None]] = {
    **dict.fromkeys(
        (
            "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
            "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
            "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
        ),
        I.push,
    ),
    **dict.fromkeys(("PROTO", "FRAME", "READONLY_BUFFER"), I.nothing),
    "NONE": lambda i, _: i.push(None), "NEWTRUE": lambda i, _: i.push(True), "NEWFALSE": lambda i, _: i.push(False),
    "MARK": I.mark, "POP": I.pop, "POP_MARK": I.pop_mark, "DUP": I.duplicate,
    "PUT": I.put, "BINPUT": I.put, "LONG_BINPUT": I.put, "MEMOIZE": I.memoize,
    "GET": I.get, "BINGET": I.get, "LONG_BINGET": I.get,
    "EMPTY_DICT": I.empty_dict, "DICT": I.dict_of_items, "SETITEM": I.set_item, "SETITEMS": I.set_items,
    "EMPTY_LIST": I.empty_list, "LIST": I.list_of_items, "APPEND": I.append, "APPENDS": I.appends,
    "EMPTY_SET": I.empty_list, "FROZENSET": I.list_of_items, "ADDITEMS": I.appends,
    "EMPTY_TUPLE": I.empty_tuple, "TUPLE": I.tuple_of_items,
    "TUPLE1": I.tuple1, "TUPLE2": I.tuple2, "TUPLE3": I.tuple3,
    "GLOBAL": I.global_by_line, "STACK_GLOBAL": I.global_by_stack,
    "EXT1": I.extension, "EXT2": I.extension, "EXT4": I.extension,
    "REDUCE": I.reduce, "INST": I.inst, "OBJ": I.obj, "NEWOBJ": I.new_object, "NEWOBJ_EX": I.new_object_ex,
    "BUILD": I.build, "PERSID": I.persistent_by_line, "BINPERSID": I.persistent_by_stack,
    "NEXT_BUFFER": I.next_buffer,
}  # fmt: skip


def read_pickle(
    data: bytes,
    name: str,
    constructors: Mapping[tuple[str, str], Callable[..., object]],
    persistent: Callable[[object], object],
) -> Pickle:
    """The pickle in `data`.

    Args:
        data: the bytes of the pickle.
        name: what an error calls it.
        constructors, persistent: see Interpreter.

    Raises:
        UnreadableError: the pickle is damaged, or larger or more involved than any real one.
    """
    try:
        return Interpreter(constructors, persistent).run(data)
    except (Damaged, ValueError, OverflowError) as error:
        raise damaged_pickle(name, error) from None


def damaged_pickle(name: str, error: Exception) -> UnreadableError:
    return UnreadableError(f"{name} holds a pickle that cannot be read: {one_line(error)}", DAMAGED_HINT)


def one_line(error: Exception) -> str:
    """The message of an error of the tokeniser, shortened: it may quote the file."""
    text = " ".join(str(error)[:400].split())
    return text if len(text) <= 160 else f"{text[:157]}..."
