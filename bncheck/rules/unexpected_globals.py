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

from bncheck.findings import CannotTell, Evidence, Rule, Severity
from bncheck.subjects import Use
from bncheck.wording import few

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects import Checkpoint, GlobalReference

SHOWN = 5

# Names of the standard library in Python 2, which protocol 2 writes, and today.
PYTHON_2 = {"__builtin__", "copy_reg", "commands", "cPickle", "urllib2", "exceptions"}
STANDARD_LIBRARY = sys.stdlib_module_names | PYTHON_2

# Modules of the standard library that only make data.
DATA_MODULES = {
    "argparse", "array", "bisect", "cmath", "collections", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "heapq", "itertools", "math", "numbers", "pathlib", "random", "statistics", "string", "time",
    "typing", "uuid", "zoneinfo",
}  # fmt: skip
BUILTINS = {
    "bool", "bytearray", "bytes", "complex", "dict", "enumerate", "float", "frozenset", "int", "list", "map", "max",
    "min", "NoneType", "object", "range", "reversed", "set", "slice", "sorted", "str", "sum", "tuple", "type",
    "unicode", "long", "zip", "len", "abs", "round", "xrange",
}  # fmt: skip
DATA_FUNCTIONS = {
    "_codecs.encode", "copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__", "copy.copy",
    "copy.deepcopy", "functools.partial", "functools.lru_cache", "functools.reduce", "logging.getLogger",
    "logging.Logger", "operator.add", "operator.mul", "operator.itemgetter", "operator.truediv", "operator.sub",
    "re._compile", "types.SimpleNamespace", "types.NoneType", "weakref.ref", "threading.RLock", "threading.Lock",
}  # fmt: skip

# Parts of torch and numpy that load files or run code, wherever they are referred to.
RUNNING_PARTS = (
    "torch.hub", "torch.load", "torch.jit", "torch.utils.cpp_extension", "torch.utils.model_zoo",
    "torch.serialization", "torch.package", "torch.distributed.rpc", "torch.utils._config_module",
    "torch.utils.collect_env", "torch._inductor", "torch._dynamo.guards", "torch.testing", "torch.utils.bottleneck",
    "torch.onnx", "torch.compile", "torch.classes.load_library", "torch.ops.load_library", "torch.fx.experimental",
    "numpy.load", "numpy.fromfile", "numpy.f2py", "numpy.testing", "numpy.distutils", "numpy.ctypeslib",
    "numpy.memmap", "numpy.save", "numpy.savez", "numpy.savetxt", "numpy.loadtxt", "numpy.genfromtxt",
    "numpy.lib.npyio",
)  # fmt: skip
# Packages whose business is to run code, to unpickle, or to talk to the network.
RUNNING_PACKAGES = {
    "pip", "setuptools", "pkg_resources", "distutils", "cloudpickle", "dill", "joblib", "IPython", "ipykernel",
    "pexpect", "paramiko", "fabric", "invoke", "requests", "urllib3", "httpx", "aiohttp", "numexpr", "pytest",
    "_pytest", "execnet",
}  # fmt: skip
# Functions of known packages that make data, so that clean training checkpoints stay quiet.
DATA_CALLS = (
    "torch._utils._rebuild", "torch._tensor._rebuild", "torch.storage", "torch.Size", "torch.device", "torch.dtype",
    "torch.nn.", "torch.optim.", "torch.Tensor", "torch.tensor", "torch.random", "torch.Generator",
    "torch.distributed.tensor", "torch.distributed._tensor", "torch.ao.", "torch.quantization.", "torch.utils.data.",
    "torch.distributions.", "torch.fx.graph_module.", "torch.torch.", "torch.cuda.", "torch.return_types.",
    "numpy.core.",
    "numpy._core.", "numpy.dtype", "numpy.ndarray", "numpy.random.", "numpy.ma.", "numpy.matrixlib.",
    "torchvision.", "timm.", "pytorch_lightning.", "lightning.", "lightning_fabric.", "mmengine.", "mmcv.",
    "mmdet.", "mmcls.", "mmseg.", "ultralytics.", "models.", "omegaconf.", "hydra.", "yacs.", "addict.",
    "easydict.", "pandas.", "transformers.", "torchmetrics.", "ignite.", "fastai.", "fvcore.", "detectron2.",
    "accelerate.", "scipy.sparse.", "inplace_abn.", "box.", "munch.", "attr.", "PIL.",
)  # fmt: skip


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
    top = path.partition(".")[0]
    if not reference.module:
        return Severity.ERROR  # the file computes what is called
    if "." in reference.name and reference.name.partition(".")[0] in STANDARD_LIBRARY:
        return Severity.ERROR  # reached through a module that imports it: torch.serialization, "os.system"
    if top in ("builtins", "__builtin__"):
        # getattr spells nested classes and methods; the interpreter reports a use of another sort as a call.
        harmless = reference.name in BUILTINS or (reference.name == "getattr" and use is Use.REFERENCED)
        return None if harmless else Severity.ERROR
    if path in DATA_FUNCTIONS or top in DATA_MODULES:
        return None
    if top in STANDARD_LIBRARY:
        return Severity.NOTE if use is Use.INSTANTIATED else Severity.ERROR
    if path.startswith(RUNNING_PARTS) or (top in RUNNING_PACKAGES and use is not Use.INSTANTIATED):
        return Severity.ERROR
    if use is Use.CALLED and not path.startswith(DATA_CALLS):
        return Severity.NOTE
    return None


RULE = Rule("unexpected-globals", Severity.ERROR, "a pickle", __doc__, checkpoint=check)
