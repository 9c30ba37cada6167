"""The options that commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from bncheck.reports import Format


class FailOn(Enum):
    """The severity from which on a run exits with 1."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    NEVER = "never"


# What every command has.
FormatOption = Annotated[
    Optional[list[Format]],  # noqa: UP045 - typer reads it at run time
    typer.Option("--format", "-f", help="Report format; may repeat, all but one with an --output. Default: text."),
]
OutputOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--output", "-o", metavar="[F=]FILE", help="Write the report (in format F) to FILE; may repeat."),
]
SelectOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--select", metavar="RULE", help="Only these rules, ids or globs; may repeat."),
]
IgnoreOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--ignore", metavar="RULE", help="Not these rules, ids or globs; may repeat."),
]
FailOnOption = Annotated[FailOn, typer.Option("--fail-on", help="Exit with 1 from this severity on.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the verdicts only.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show every layer.")]
NoColorOption = Annotated[bool, typer.Option("--no-color", help="No colors (NO_COLOR does the same).")]
WidthOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--width", min=40, help="Columns of the text report. Default: those of the terminal, else 80."),
]
BeforeGroupOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--before-group", metavar="GLOB", help="Only these state dicts of the first file; may repeat."),
]
AfterGroupOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--after-group", metavar="GLOB", help="Only these state dicts of the others; may repeat."),
]
MapOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--map",
        metavar="FROM=TO",
        help="Names that begin with FROM in the first file begin with TO in the others; may repeat.",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

# What names a model.
ModelFileArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        metavar="[MODEL]", help=r"A checkpoint. Default: checkpoint of \[tool.bncheck].", show_default=False
    ),
]
ModelOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--model",
        metavar="MODULE:CALLABLE",
        help="The architecture of a state_dict: torchvision.models:resnet50 or net.py:Net. Its code is run.",
    ),
]
ModelArgOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--model-arg", metavar="NAME=VALUE", help="An argument for the callable; may repeat."),
]
PythonPathOption = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--python-path", metavar="DIR", help="Where to import from, besides here; may repeat."),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-pickle", help="Unpickle a whole module, which runs whatever the file says.")
]
MainOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--main", metavar="FILE.py", help="The script whose classes the pickle calls __main__.Net."),
]
OneGroupOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--group", metavar="GLOB", help="Which state dict or module of the file (model, ema, ...)."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--dtype", help="Run the model in float32, float64, bfloat16, float16. Default: its own."),
]
ThreadsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--threads", min=1, help="Threads of the CPU. Default: those of PyTorch."),
]
EvaluatorOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--evaluator",
        metavar="MODULE:FUNCTION",
        help="Your own evaluation, function(model, batches) or function(model), which is watched.",
    ),
]

# What names data, and how images become numbers.
DataOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--data", metavar="DIR", help="A folder of images, .npy, .npz, .pt or .safetensors, a file, or module:callable."
    ),
]
SizeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--size", metavar="HxW", help="Size of the image that the model sees: 224 or 224x160."),
]
ResizeOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--resize", metavar="N", min=1, help="Length of the shorter side before --size is cut out."),
]
MeanOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--mean", metavar="M,M,M", help="Subtracted from pixels between 0 and 1."),
]
StdOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--std", metavar="S,S,S", help="What is left is divided by these."),
]
GrayscaleOption = Annotated[bool, typer.Option("--grayscale", help="Images of one channel.")]
ChannelsLastOption = Annotated[bool, typer.Option("--channels-last", help="Images of shape (N, H, W, C).")]
InputKeyOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--input-key", metavar="KEY", help="The array or key that the model takes; may repeat."),
]
LimitOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--limit", metavar="N", min=1, help="Read this many samples, spread over the folder."),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="Samples in a batch.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, help="Threads that decode images ahead.")]
SkipOption = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and count them.")
]

ConfigOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--config", metavar="FILE", help="Default: bncheck.toml or pyproject.toml, here or in a folder above."
    ),
]


# -- what repairs a checkpoint


class MethodName(Enum):
    """How statistics are estimated."""

    TRAIN = "train"
    SEQUENTIAL = "sequential"


class VarianceName(Enum):
    """Which variance is written."""

    WITHIN_BATCH = "within-batch"
    POOLED = "pooled"


NewFileOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", "-o", metavar="NEW", help="The new checkpoint; of one in several files, a new folder."),
]
FromOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--from", metavar="OTHER", help="Copy the statistics of this checkpoint; nothing is run."),
]
MethodOption = Annotated[
    MethodName,
    typer.Option(
        "--method",
        help="train: one pass that normalises by the batch. sequential: passes in eval mode, until nothing moves.",
    ),
]
VarianceOption = Annotated[
    VarianceName,
    typer.Option("--variance", help="within-batch, what running_var follows in training, or that of all samples."),
]
LayerOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--layer", metavar="GLOB", help="Only layers of this name; may repeat."),
]
KeepFrozenOption = Annotated[
    bool,
    typer.Option(
        "--keep-frozen/--no-keep-frozen", help="Keep layers that a module holds in eval mode while the rest trains."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what NEW names. The input is never replaced.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")]
