"""What a pickle would import, and whether a model needs that."""

from bncheck.rules.unexpected_globals import RULE
from bncheck.subjects.checkpoint import Checkpoint, GlobalReference
from tests.rules.layers import checkpoint
from tests.rules.tables import Fires, Quiet, error, fires, note, quiet

# Each is (module, name, use).
HARMLESS = [
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

RUNNING = [
    ("os", "system", "called"),
    ("posix", "system", "called"),
    ("nt", "system", "referenced"),
    ("subprocess", "Popen", "called"),
    ("builtins", "eval", "called"),
    ("__builtin__", "getattr", "called"),
    ("importlib", "import_module", "called"),
    ("pkgutil", "resolve_name", "called"),
    ("runpy", "run_path", "called"),
    ("timeit", "timeit", "called"),
    ("torch.hub", "load", "called"),
    ("torch", "load", "called"),
    ("torch.serialization", "os.system", "called"),
    ("torch.nn", "parallel.distributed.os.system", "called"),
    ("torch.nn.modules.module", "torch.hub.load", "called"),
    ("numpy.ma.core", "np.load", "called"),
    ("random", "_os.system", "called"),
    ("pathlib", "Path.unlink", "called"),
    ("dataclasses", "_create_fn", "called"),
    ("uuid", "_get_command_stdout", "called"),
    ("torch.storage", "_load_from_bytes", "called"),
    ("pandas", "read_pickle", "called"),
    ("my_package", "helpers.os.system", "referenced"),
    ("my_package", "Net.__init__.__globals__", "referenced"),
    ("numpy.testing._private.utils", "runstring", "called"),
    ("pip", "main", "called"),
    ("copyreg", "extension_5", "called"),
    ("", "a function that the file computes", "called"),
]

UNKNOWN = [
    ("torch.fx.graph_module", "reduce_graph_module", "called"),
    ("socket", "socket", "instantiated"),
    ("my_package", "build", "called"),
]


def asking_for(*references: tuple[str, str, str]) -> Checkpoint:
    return checkpoint(references=tuple(GlobalReference(*reference) for reference in references))


def named(reference: tuple[str, str, str]) -> str:
    return ".".join(reference[:2])


QUIET: Quiet = {named(one): asking_for(one) for one in HARMLESS}

FIRES: Fires = {
    **{named(one): (asking_for(one), error("loading it with pickle would", layer="")) for one in RUNNING},
    **{named(one): (asking_for(one), note("which bncheck does not know", layer="")) for one in UNKNOWN},
    "all that the file asks for": (asking_for(*RUNNING[:2]), error("os.system, posix.system", layer="")),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
