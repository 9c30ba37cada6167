"""Which model is examined, and how it is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bncheck.options.option import Counted, Options, Panel, StrPath, WrongOption, option

# What an argument of the architecture is on the command line: texts; in a file and in Python: values by name.
ModelArguments = Mapping[str, Any] | Sequence[str]


@dataclass(kw_only=True, eq=False, repr=False)
class OneCheckpoint(Options):
    """The checkpoint that is examined."""

    checkpoint: StrPath | None = option(
        None,
        "A checkpoint. Default: that of the configuration.",
        Panel.WHAT,
        metavar="[MODEL]",
        argument=True,
    )


@dataclass(kw_only=True, eq=False, repr=False)
class Architecture(Options):
    """The code that builds the model."""

    model: str | None = option(
        None,
        "The architecture of a state_dict, net.py:Net. Its code is run.",
        Panel.MODEL,
        metavar="MODULE:NAME",
        counted=Counted.CODE,
    )
    model_args: ModelArguments = option(
        (),
        "An argument for its callable; may repeat.",
        Panel.MODEL,
        metavar="NAME=VALUE",
        flags=("--model-arg",),
        schema={"type": "object"},
    )
    python_path: Sequence[StrPath] = option(
        (), "Where to import from, too; may repeat.", Panel.MODEL, metavar="DIR", counted=Counted.PATH
    )

    def check(self) -> None:
        super().check()
        _ = self.arguments

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the callable. Values of texts `name=value` are Python literals, or else texts.

        Raises:
            WrongOption: a text is not of that form.
        """
        if isinstance(self.model_args, Mapping):
            return dict(self.model_args)
        texts = (self.model_args,) if isinstance(self.model_args, str) else self.model_args
        return dict(map(named_argument, texts))


def named_argument(text: str) -> tuple[str, Any]:
    """`num_classes=10` as a name and a value."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise WrongOption("model_args", text, "is not of the form name=value", "Write num_classes=10, say.")
    import ast

    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@dataclass(kw_only=True, eq=False, repr=False)
class ModelOptions(Architecture):
    """How a checkpoint becomes a model that runs."""

    trust_pickle: bool = option(False, "Unpickle a whole module: runs what the file says.", Panel.MODEL)
    group: str | None = option(None, "Which state dict or module of the file.", Panel.MODEL, metavar="GLOB")
    main: StrPath | None = option(
        None,
        "The script with the classes of a pickle's __main__.",
        Panel.MODEL,
        metavar="FILE.py",
        counted=Counted.PATH,
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", Panel.MODEL, metavar="NAME")
    dtype: str | None = option(
        None, "float32, float64, bfloat16, float16. Default: its own.", Panel.MODEL, metavar="NAME"
    )
    threads: int | None = option(None, "Threads of the CPU.", Panel.MODEL, metavar="N", least=1)
