"""A pickle that imports or calls what no model needs.

## What it checks

The functions and classes that unpickling the file would import. Constructors of tensors and plain data, and the
classes of the objects in the file, are expected. Reported as an error: anything else of the standard library (os,
subprocess, builtins.eval and the like), functions of torch and numpy that load or run further files, tools that run
code, and calls of functions that the file computes. A function of another package that is called is a note: bncheck
cannot know it.

## Why it matters

torch.load with weights_only=False runs whatever the file asks for. bncheck itself never resolves a name of a file, so
that inspecting it is safe, and its layers are shown all the same.

## When it is wrong

A training script may pickle a helper of the standard library into its checkpoint by accident. This is no malware
scanner: a package of yours that runs code when it is imported or called is not recognised.

## What to do

Do not load the file unless its source is trusted. Load with torch.load(path, weights_only=True), or save the
state_dict as safetensors, which cannot hold code.

## Seen in

The warning in the documentation of torch.load, and the file scanners of model hubs, which exist because of such files
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.checkpoint import Use
from bncheck.wording import few

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, GlobalReference

SHOWN = 5

# Names of the standard library in Python 2, which protocol 2 writes, and today.
PYTHON_2 = {"__builtin__", "copy_reg", "commands", "cPickle", "urllib2", "exceptions"}
STANDARD_LIBRARY = sys.stdlib_module_names | PYTHON_2

# Classes and functions of the standard library that only make data. Modules are not enough: each imports others.
DATA = {
    "_codecs.encode", "argparse.Namespace", "array.array", "array._array_reconstructor", "collections.Counter",
    "collections.OrderedDict", "collections.UserDict", "collections.UserList", "collections.abc.Mapping",
    "collections.defaultdict", "collections.deque", "copy.copy", "copy.deepcopy", "copy_reg.__newobj__",
    "copy_reg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__", "copyreg._reconstructor", "datetime.date",
    "datetime.datetime", "datetime.time", "datetime.timedelta", "datetime.timezone", "decimal.Decimal",
    "fractions.Fraction", "functools.lru_cache", "functools.partial", "functools.reduce", "itertools.chain",
    "itertools.count", "itertools.cycle", "itertools.repeat", "logging.Logger", "logging.getLogger", "operator.add",
    "operator.itemgetter", "operator.mul", "operator.sub", "operator.truediv", "pathlib.Path", "pathlib.PosixPath",
    "pathlib.PurePath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib.WindowsPath",
    "pathlib._local.Path", "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "random.Random", "re._compile",
    "threading.Lock", "threading.RLock", "time.perf_counter", "time.time", "types.NoneType", "types.SimpleNamespace",
    "typing.Any", "typing.Dict", "typing.List", "typing.Optional", "typing.Tuple", "typing.Union", "uuid.SafeUUID",
    "uuid.UUID", "weakref.ref", "zoneinfo.ZoneInfo", "torch.serialization._get_layout",
}  # fmt: skip
DATA_MODULES = {"math", "cmath"}  # all of them are functions of numbers
BUILTINS = {
    "bool", "bytearray", "bytes", "complex", "dict", "enumerate", "float", "frozenset", "int", "list", "map", "max",
    "min", "NoneType", "object", "range", "reversed", "set", "slice", "sorted", "str", "sum", "tuple", "type",
    "unicode", "long", "zip", "len", "abs", "round", "xrange",
}  # fmt: skip

# Parts of known packages that load files or run code, wherever they are referred to.
RUNNING_PARTS = (
    "torch.hub", "torch.load", "torch.jit", "torch.utils.cpp_extension", "torch.utils.model_zoo",
    "torch.serialization", "torch.package", "torch.distributed.rpc", "torch.utils._config_module",
    "torch.utils.collect_env", "torch._inductor", "torch._dynamo.guards", "torch.testing", "torch.utils.bottleneck",
    "torch.onnx", "torch.compile", "torch.classes.load_library", "torch.ops.load_library", "torch.fx.experimental",
    "torch.storage._load_from_bytes", "torch.fx.graph_module._exec", "torch.fx.graph_module._forward_from_src",
    "torch.distributed.run", "torch.distributed.launch", "torch.distributed.elastic", "torch.multiprocessing",
    "numpy.load", "numpy.fromfile", "numpy.f2py", "numpy.testing", "numpy.distutils", "numpy.ctypeslib",
    "numpy.memmap", "numpy.save", "numpy.savez", "numpy.savetxt", "numpy.loadtxt", "numpy.genfromtxt",
    "numpy.lib", "pandas.eval", "pandas.read_", "pandas.io", "pandas.core.computation", "hydra.utils",
    "omegaconf.OmegaConf.load", "torchvision.datasets", "transformers.pipelines",
)  # fmt: skip
# Packages whose business is to run code, to unpickle, or to talk to the network.
RUNNING_PACKAGES = {
    "pip", "setuptools", "pkg_resources", "distutils", "cloudpickle", "dill", "joblib", "IPython", "ipykernel",
    "pexpect", "paramiko", "fabric", "invoke", "requests", "urllib3", "httpx", "aiohttp", "numexpr", "pytest",
    "_pytest", "execnet",
}  # fmt: skip
# Functions that make data, besides classes of known packages, so that clean training checkpoints stay quiet.
DATA_CALLS = (
    "torch._utils._rebuild", "torch._tensor._rebuild", "torch.device", "torch.distributed.checkpoint.metadata.",
    "torch.autograd.variable.", "torch.distributed.tensor._", "torch.return_types.", "numpy.core.multiarray.",
    "numpy._core.multiarray.", "numpy.core.numeric.", "numpy._core.numeric.", "numpy.dtype", "numpy.ndarray",
    "numpy.random._pickle.", "numpy.ma.core._mareconstruct",
)  # fmt: skip
DATA_PACKAGES = {
    "torch", "torchvision", "timm", "pytorch_lightning", "lightning", "lightning_fabric", "mmengine", "mmcv", "mmdet",
    "mmcls", "mmseg", "ultralytics", "models", "omegaconf", "yacs", "addict", "easydict", "pandas", "transformers",
    "torchmetrics", "ignite", "fastai", "fvcore", "detectron2", "accelerate", "scipy", "inplace_abn", "box", "munch",
    "attr", "PIL", "numpy",
}  # fmt: skip


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    by_severity: dict[Severity, list[GlobalReference]] = {}
    for reference in checkpoint.globals:
        severity = judge(reference)
        if severity:
            by_severity.setdefault(severity, []).append(reference)
    if found := by_severity.get(Severity.ERROR):
        yield Evidence(
            f"loading it with pickle would {deeds(found)}",
            "Do not load it unless you trust its source; use torch.load(..., weights_only=True) or safetensors.",
            measured=measured(found),
        )
    if found := by_severity.get(Severity.NOTE):
        yield Evidence(
            f"loading it would {deeds(found)}, which bncheck does not know",
            "Check that the package is yours.",
            measured=measured(found),
            severity=Severity.NOTE,
        )


def deeds(found: list[GlobalReference]) -> str:
    """`call os.system and import builtins.eval`."""
    called = [reference.path.lstrip(".") for reference in found if reference.use == Use.CALLED.value]
    imported = [reference.path for reference in found if reference.use != Use.CALLED.value]
    parts = [f"call {few(called, SHOWN)}"] * bool(called) + [f"import {few(imported, SHOWN)}"] * bool(imported)
    return " and ".join(parts)


def measured(found: list[GlobalReference]) -> dict[str, object]:
    return {"globals": tuple(reference.path.lstrip(".") for reference in found)}


def judge(reference: GlobalReference) -> Severity | None:
    """How unexpected a reference is; None for what models hold."""
    path, use = reference.path, Use(reference.use)
    top = reference.module.partition(".")[0]
    if path in DATA or (top in DATA_MODULES and "." not in reference.name):
        return None
    if not reference.module or leads_elsewhere(reference):
        return Severity.ERROR
    if top in ("builtins", "__builtin__"):
        # getattr spells nested classes and methods; the interpreter reports a use of another sort as a call.
        harmless = reference.name in BUILTINS or (reference.name == "getattr" and use is Use.REFERENCED)
        return None if harmless else Severity.ERROR
    if top in STANDARD_LIBRARY:
        return Severity.NOTE if use is Use.INSTANTIATED else Severity.ERROR
    if path.startswith(RUNNING_PARTS) or (top in RUNNING_PACKAGES and use is not Use.INSTANTIATED):
        return Severity.ERROR
    is_data = path.startswith(DATA_CALLS) or (top in DATA_PACKAGES and is_class(reference.name))
    return Severity.NOTE if use is Use.CALLED and not is_data else None


def leads_elsewhere(reference: GlobalReference) -> bool:
    """Whether a dotted name goes through what a module has imported: ("torch.nn", "functional.os.system").

    A nested class or a method has a class before the dot, with a capital letter.
    """
    *way, _ = parts = reference.name.split(".")
    if not way:
        return False
    imported = STANDARD_LIBRARY | {"torch", "numpy", "np", "pandas", "pd"}
    return (
        any(part.lstrip("_") in imported or part in imported for part in way)
        or any(part.startswith("__") for part in parts)
        or (not is_class(way[0]) and reference.module.partition(".")[0] in STANDARD_LIBRARY | DATA_PACKAGES)
    )


def is_class(name: str) -> bool:
    """Whether a name is spelled like that of a class."""
    return name.rpartition(".")[2].lstrip("_")[:1].isupper()


RULE = Rule("unexpected-globals", Severity.ERROR, "a pickle", __doc__, checkpoint=check)
