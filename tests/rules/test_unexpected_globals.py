"""What a pickle would import, and whether a model needs that."""

import pytest

from bncheck.rules.unexpected_globals import RULE, judge
from bncheck.subjects.checkpoint import GlobalReference
from tests.rules.layers import checkpoint

QUIET = [
    ("torch._utils", "_rebuild_tensor_v2", "called"),
    ("torch", "FloatStorage", "referenced"),
    ("collections", "OrderedDict", "called"),
    ("torch.nn.modules.batchnorm", "BatchNorm2d", "instantiated"),
    ("torch.nn.functional", "relu", "referenced"),  # an activation that a module keeps
    ("torch._C._nn", "gelu", "referenced"),
    ("my_package.models", "Net", "instantiated"),
    ("my_package.system.eval", "Block", "instantiated"),  # names of packages are theirs to choose
    ("__main__", "Net.Inner", "instantiated"),
    ("builtins", "set", "called"),
    ("__builtin__", "getattr", "referenced"),  # how protocol 2 spells nested classes and methods
    ("_codecs", "encode", "called"),
    ("argparse", "Namespace", "instantiated"),
    ("pathlib", "PosixPath", "called"),
    ("functools", "partial", "called"),  # norm_layer=partial(nn.BatchNorm2d, eps=1e-3)
    ("numpy.core.multiarray", "_reconstruct", "called"),
    ("numpy._core.multiarray", "scalar", "called"),
    ("numpy", "dtype", "called"),
    ("datetime", "datetime", "called"),
    ("torch.nn.modules.module", "Module.forward", "referenced"),
    ("torch.serialization", "_get_layout", "called"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", "called"),
    ("torch.autograd.variable", "Variable", "called"),
    ("math", "sqrt", "referenced"),
    ("omegaconf.dictconfig", "DictConfig", "instantiated"),
    ("pytorch_lightning.utilities.parsing", "AttributeDict", "called"),
    ("ultralytics.nn.tasks", "DetectionModel", "instantiated"),
    ("mmengine.logging.history_buffer", "HistoryBuffer", "instantiated"),
]

FIRES = [
    ("os", "system", "called", "error"),
    ("posix", "system", "called", "error"),
    ("nt", "system", "referenced", "error"),
    ("subprocess", "Popen", "called", "error"),
    ("builtins", "eval", "called", "error"),
    ("__builtin__", "getattr", "called", "error"),
    ("importlib", "import_module", "called", "error"),
    ("pkgutil", "resolve_name", "called", "error"),
    ("runpy", "run_path", "called", "error"),
    ("timeit", "timeit", "called", "error"),
    ("torch.hub", "load", "called", "error"),
    ("torch", "load", "called", "error"),
    ("torch.serialization", "os.system", "called", "error"),
    ("torch.nn", "parallel.distributed.os.system", "called", "error"),
    ("torch.nn.modules.module", "torch.hub.load", "called", "error"),
    ("numpy.ma.core", "np.load", "called", "error"),
    ("random", "_os.system", "called", "error"),
    ("pathlib", "Path.unlink", "called", "error"),
    ("dataclasses", "_create_fn", "called", "error"),
    ("uuid", "_get_command_stdout", "called", "error"),
    ("torch.storage", "_load_from_bytes", "called", "error"),
    ("pandas", "read_pickle", "called", "error"),
    ("my_package", "helpers.os.system", "referenced", "error"),
    ("my_package", "Net.__init__.__globals__", "referenced", "error"),
    ("torch.fx.graph_module", "reduce_graph_module", "called", "note"),
    ("numpy.testing._private.utils", "runstring", "called", "error"),
    ("pip", "main", "called", "error"),
    ("copyreg", "extension_5", "called", "error"),
    ("", "a function that the file computes", "called", "error"),
    ("socket", "socket", "instantiated", "note"),
    ("my_package", "build", "called", "note"),
]


@pytest.mark.parametrize("reference", QUIET, ids=lambda reference: ".".join(reference[:2]))
def test_quiet(reference: tuple[str, str, str]) -> None:
    assert judge(GlobalReference(*reference)) is None


@pytest.mark.parametrize("case", FIRES, ids=lambda case: ".".join(case[:2]))
def test_fires(case: tuple[str, str, str, str]) -> None:
    severity = judge(GlobalReference(*case[:3]))
    assert severity is not None
    assert severity.value == case[3]


def test_the_finding_lists_what_the_file_asks_for() -> None:
    assert RULE.checkpoint is not None
    references = tuple(GlobalReference(*case[:3]) for case in FIRES[:2])
    [evidence] = RULE.checkpoint(checkpoint(references=references))
    assert "os.system, posix.system" in evidence.message
