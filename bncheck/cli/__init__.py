"""The command line: reads arguments, hands them on, prints, and exits.

The only module that prints, opens output files or exits. What a command does not need is imported where it is
needed: numpy takes 60 ms, torch more than a second.
"""

from __future__ import annotations

import functools
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TextIO

import typer

from bncheck import reports
from bncheck.errors import BncheckError, UsageError
from bncheck.options import (
    AfterGroupOption,
    BatchSizeOption,
    BeforeGroupOption,
    ChannelsLastOption,
    ConfigOption,
    DataOption,
    DebugOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    EvaluatorOption,
    FailOn,
    FailOnOption,
    ForceOption,
    FormatOption,
    FromOption,
    GrayscaleOption,
    IgnoreOption,
    InputKeyOption,
    KeepFrozenOption,
    LayerOption,
    LimitOption,
    MainOption,
    MapOption,
    MeanOption,
    MethodName,
    MethodOption,
    ModelArgOption,
    ModelFileArgument,
    ModelOption,
    NewFileOption,
    NoColorOption,
    OneGroupOption,
    OutputOption,
    PythonPathOption,
    QuietOption,
    ResizeOption,
    SelectOption,
    SizeOption,
    SkipOption,
    StdOption,
    ThreadsOption,
    TrustOption,
    VarianceName,
    VarianceOption,
    VerboseOption,
    WidthOption,
    WorkersOption,
)
from bncheck.reports import Format, Style
from bncheck.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bncheck.config import Config
    from bncheck.findings.report import Report, Run
    from bncheck.findings.rule import Severity

NO_VERDICT = 2
REPORT_IT = "This is a defect of bncheck; run again with --debug and report what it prints."
# File name suffixes that are not the name of the format.
SUFFIXES = {"xml": "junit", "md": "markdown"}
# From this many files on, progress is shown.
MANY_FILES = 5

app = typer.Typer(
    name="bncheck",
    help="Can the BatchNorm layers of this checkpoint be trusted?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 passed, 1 findings at or above --fail-on, 2 no verdict (usage, unreadable input), "
    "3 no BatchNorm layer in any input.",
)


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command, whose errors become one sentence, a hint and exit code 2.

    An exception that got through would exit with 1, which reads as findings.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @app.command(name)
        @functools.wraps(function)
        def run(**arguments: object) -> None:
            try:
                function(**arguments)
            except BncheckError as error:
                if arguments.get("debug"):
                    raise
                complain(error.message, error.hint)
                raise typer.Exit(NO_VERDICT) from None
            except (typer.Exit, typer.TyperException, KeyboardInterrupt):
                raise
            except Exception as error:
                if arguments.get("debug"):
                    raise
                complain(
                    f"bncheck itself failed: {type(error).__name__}: {error}",
                    REPORT_IT,
                )
                raise typer.Exit(NO_VERDICT) from None

        return run

    return register


def complain(message: str, hint: str) -> None:
    """An error on stderr, the file's own characters escaped."""
    from bncheck.wording import escaped

    typer.echo(f"error: {escaped(message)}\n hint: {escaped(hint)}", err=True)


def only_the_command_that_is_asked(arguments: list[str]) -> None:
    """Leaves the others out: typer would build each option of each command first, a tenth of the time of `inspect`."""
    asked = [command for command in app.registered_commands if arguments and command.name == arguments[0]]
    if asked:
        app.registered_commands = asked


def main() -> None:
    """The console script. Whatever goes wrong, it does not exit with 1, which means findings."""
    only_the_command_that_is_asked(sys.argv[1:])
    try:
        app()
    except Exception:  # noqa: BLE001 - before a command has its own net
        import traceback

        traceback.print_exc()
        sys.exit(NO_VERDICT)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bncheck {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@command("inspect")
def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Checkpoints, folders to search, or patterns.", show_default=False),
    ],
    model: ModelOption = None,
    model_arg: ModelArgOption = None,
    python_path: PythonPathOption = None,
    group: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--group", metavar="GLOB", help="Only these state dicts of a file (model, ema, ...); may repeat."),
    ] = None,
    kind: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--kind", metavar="GLOB", help="Only layers of this kind, such as BatchNorm2d; may repeat."),
    ] = None,
    layer: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--layer", metavar="GLOB", help="Only layers of this name; may repeat."),
    ] = None,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Ask the rules that read more of the file, too: convolutions, graphs.")
    ] = False,
    format: FormatOption = None,
    output: OutputOption = None,
    fail_on: FailOnOption = FailOn.ERROR,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    no_color: NoColorOption = False,
    width: WidthOption = None,
    debug: DebugOption = False,
) -> None:
    """Show every BatchNorm layer of checkpoints and judge its statistics, without running them."""
    outputs = Outputs(format or [], output or [], Style(width, False if no_color else None, verbose, quiet))
    with one_numpy_thread():
        from bncheck.commands.inspect import find_all, inspect_file
        from bncheck.judgement.diagnosis import unreadable
        from bncheck.judgement.selection import Selection, chosen
        from bncheck.rules import INSPECT_RULES

    rules = chosen(INSPECT_RULES, select or (), ignore or (), deep=deep)
    selection = Selection(tuple(group or ()), tuple(kind or ()), tuple(layer or ()))
    complete = None
    if model:
        from bncheck.evaluation.models.architecture import architecture

        complete = architecture(model, model_arg or [], python_path or [])
    elif model_arg or python_path:
        raise UsageError("--model-arg and --python-path need --model", "Name the architecture with --model.")
    threshold = severity(fail_on)

    def examine(path: Path, *, debug: bool) -> Report:
        """A defect of ours on one file does not lose the reports on the others."""
        try:
            return inspect_file(path, threshold, selection, complete, rules)
        except Exception as error:
            if debug:
                raise
            return unreadable(str(path), BncheckError(f"bncheck itself failed on {path}: {error!r}", REPORT_IT))

    found = list(find_all(paths))
    examined: list[Report] = []
    for item in with_progress(found):
        examined.append(examine(item, debug=debug) if isinstance(item, Path) else item)
    finish("inspect", examined, outputs)


@command("diff")
def diff(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="The earlier checkpoint.")],
    after: Annotated[
        list[str], typer.Argument(metavar="AFTER...", help="The later one; or several, such as the ranks of a run.")
    ],
    before_group: BeforeGroupOption = None,
    after_group: AfterGroupOption = None,
    map: MapOption = None,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
    fail_on: FailOnOption = FailOn.ERROR,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    no_color: NoColorOption = False,
    width: WidthOption = None,
    debug: DebugOption = False,
) -> None:
    """Say what happened to the BatchNorm layers between two checkpoints, without running them."""
    outputs = Outputs(format or [], output or [], Style(width, False if no_color else None, verbose, quiet))
    with one_numpy_thread():
        from bncheck.commands.diff import compare_paths, mapping_of
        from bncheck.judgement.selection import chosen
        from bncheck.rules import DIFF_RULES

    rules = chosen(DIFF_RULES, select or (), ignore or ())
    mapping = tuple(mapping_of(map or ()))
    reports = compare_paths(
        before, after, severity(fail_on), rules, before_group or (), after_group or (), mapping, debug=debug
    )
    finish("diff", reports, outputs)


@command("drift")
def drift(
    model_file: ModelFileArgument = None,
    data: DataOption = None,
    in_distribution: Annotated[
        bool, typer.Option("--in-distribution", help="The data are like those of the training: misfits are errors.")
    ] = False,
    channels: Annotated[bool, typer.Option("--channels", help="Put arrays per channel into the JSON report.")] = False,
    model: ModelOption = None,
    model_arg: ModelArgOption = None,
    trust_pickle: TrustOption = False,
    evaluator: EvaluatorOption = None,
    group: OneGroupOption = None,
    main: MainOption = None,
    python_path: PythonPathOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    size: SizeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    grayscale: GrayscaleOption = False,
    channels_last: ChannelsLastOption = False,
    input_key: InputKeyOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 32,
    workers: WorkersOption = 2,
    skip_unreadable: SkipOption = False,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
    fail_on: FailOnOption = FailOn.ERROR,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    no_color: NoColorOption = False,
    width: WidthOption = None,
    debug: DebugOption = False,
) -> None:
    """Run a model on data: do its statistics move, what would train mode cost, do they fit the data?"""
    run_on_data("drift", locals())


@command("repeat")
def repeat(
    model_file: ModelFileArgument = None,
    data: DataOption = None,
    runs: Annotated[int, typer.Option("--runs", min=2, help="How often the same batches are evaluated.")] = 2,
    model: ModelOption = None,
    model_arg: ModelArgOption = None,
    trust_pickle: TrustOption = False,
    evaluator: EvaluatorOption = None,
    group: OneGroupOption = None,
    main: MainOption = None,
    python_path: PythonPathOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    size: SizeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    grayscale: GrayscaleOption = False,
    channels_last: ChannelsLastOption = False,
    input_key: InputKeyOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 32,
    workers: WorkersOption = 2,
    skip_unreadable: SkipOption = False,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
    fail_on: FailOnOption = FailOn.ERROR,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    no_color: NoColorOption = False,
    width: WidthOption = None,
    debug: DebugOption = False,
) -> None:
    """Evaluate again, and in other batches: do the results agree, and if not, what is the cause?"""
    run_on_data("repeat", locals())


@command("recalibrate")
def recalibrate(
    model_file: ModelFileArgument = None,
    data: DataOption = None,
    output: NewFileOption = None,
    from_: FromOption = None,
    method: MethodOption = MethodName.TRAIN,
    variance: VarianceOption = VarianceName.WITHIN_BATCH,
    layer: LayerOption = None,
    keep_frozen: KeepFrozenOption = True,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    model: ModelOption = None,
    model_arg: ModelArgOption = None,
    trust_pickle: TrustOption = False,
    group: OneGroupOption = None,
    main: MainOption = None,
    python_path: PythonPathOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    size: SizeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    grayscale: GrayscaleOption = False,
    channels_last: ChannelsLastOption = False,
    input_key: InputKeyOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 32,
    workers: WorkersOption = 2,
    skip_unreadable: SkipOption = False,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    format: FormatOption = None,
    fail_on: FailOnOption = FailOn.ERROR,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    no_color: NoColorOption = False,
    width: WidthOption = None,
    debug: DebugOption = False,
) -> None:
    """Write a new checkpoint whose statistics are estimated on data, or copied from another checkpoint."""
    given = locals()
    outputs = Outputs(format or [], [], Style(width, False if no_color else None, verbose, quiet))
    with one_numpy_thread():
        from bncheck.commands.recalibrate import RepairOptions, copy_statistics, recalibrate_file
        from bncheck.config import configured
    configured_path = None if model_file else configured(Path.cwd())["checkpoint"]
    path = model_file or (configured_path if isinstance(configured_path, str) else None)
    if not path:
        raise UsageError("no model is named", "bncheck recalibrate MODEL --data DIR --output NEW.")
    if (data is None) == (from_ is None):
        raise UsageError(
            "statistics come from --data or from --from", "Give one of the two: --data DIR, or --from OTHER."
        )
    if (output is None) == (not dry_run):
        raise UsageError("the new file is named by --output, or left out by --dry-run", "Give one of the two.")
    options = RepairOptions(
        output=output,
        force=force,
        group=group,
        layers=tuple(layer or ()),
        fail_on=severity(fail_on),
        select=tuple(select or ()),
        ignore=tuple(ignore or ()),
    )
    if from_ is not None:
        finish("recalibrate", [copy_statistics(Path(path), from_, options)], outputs)
    from bncheck.evaluation.probes.recalibrate import Method, RecalibrationOptions, Variance

    estimation = RecalibrationOptions(Method(method.value), Variance(variance.value), tuple(layer or ()), keep_frozen)
    with evaluation_progress("recalibrate") as progress:
        report = recalibrate_file(Path(path), given, options, estimation, progress)
    finish("recalibrate", [report], outputs)


def run_on_data(name: str, given: dict[str, Any]) -> None:
    """`drift` and `repeat`: makes the model and the data, runs the probes, writes the report."""
    outputs = Outputs(
        given["format"] or [],
        given["output"] or [],
        Style(given["width"], False if given["no_color"] else None, given["verbose"], given["quiet"]),
    )
    from bncheck.config import configured
    from bncheck.judgement.selection import chosen
    from bncheck.rules import DRIFT_RULES, REPEAT_RULES

    rules = chosen(DRIFT_RULES if name == "drift" else REPEAT_RULES, given["select"] or (), given["ignore"] or ())
    defaults = configured(Path.cwd())
    configured_path = defaults["checkpoint"]
    path = given["model_file"] or (configured_path if isinstance(configured_path, str) else None)
    if not path:
        raise UsageError("no model is named", f"bncheck {name} MODEL, or checkpoint = ... under [tool.bncheck].")
    if not given["model_file"]:
        given = with_configured_model(given, defaults)
    if not given["data"]:
        raise UsageError("no data is named", f"bncheck {name} MODEL --data DIR, or --data module:callable.")
    from bncheck.evaluation.session import examine
    from bncheck.judgement.diagnosis import diagnose_evaluation

    with evaluation_progress(name) as progress:
        evaluation = examine(name, Path(path), given, progress)
    report = diagnose_evaluation(evaluation, severity(given["fail_on"]), rules, channels=given.get("channels", False))
    finish(name, [report], outputs)


def with_configured_model(given: dict[str, Any], config: Config) -> dict[str, Any]:
    """The options with what the configuration says of its checkpoint, where the command line says nothing."""
    from bncheck.commands.gate import model_arguments

    said = {key: config[key.replace("_", "-")] for key in ("model", "evaluator", "group", "trust_pickle")}
    said["model_arg"] = model_arguments(config)
    said["main"] = Path(config["main"]) if config["main"] else None
    said["python_path"] = [Path(folder) for folder in config["python-path"]]
    return {**given, **{key: value for key, value in said.items() if value and not given[key]}}


def somebody_watches() -> bool:
    """Whether progress has a reader: some CI services run jobs in a terminal that nobody sees."""
    return sys.stderr.isatty() and not os.environ.get("CI")


@contextmanager
def evaluation_progress(name: str) -> Iterator[Callable[[int], None]]:
    """Counts samples on stderr where somebody watches, with their rate."""
    if not somebody_watches():
        yield lambda samples: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn(name),
        TextColumn("{task.completed:,} images"),
        TextColumn("{task.fields[rate]:,.0f} images/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None, rate=0.0)

        def advance(samples: int) -> None:
            bar.update(task, advance=samples)
            bar.update(task, rate=bar.tasks[0].finished_speed or bar.tasks[0].speed or 0.0)

        yield advance


@command("gate")
def gate(
    paths: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[PATH...]", help="Checkpoints. Default: those of the configuration.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    reference: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--reference", metavar="FILE", help="A checkpoint to compare with."),
    ] = None,
    model: ModelOption = None,
    trust_pickle: TrustOption = False,
    evaluator: EvaluatorOption = None,
    baseline: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--baseline", metavar="FILE", help="Findings that are known and do not count."),
    ] = None,
    write_baseline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--write-baseline", metavar="FILE", help="Write what is found as the baseline, and pass."),
    ] = None,
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--jobs", min=1, help="Processes that inspect files. Default: one for each core."),
    ] = None,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
    fail_on: Annotated[
        Optional[FailOn],  # noqa: UP045
        typer.Option(
            "--fail-on", help="Fail from this severity on. Default: fail-on of the configuration, or warning."
        ),
    ] = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    no_color: NoColorOption = False,
    width: WidthOption = None,
    debug: DebugOption = False,
) -> None:
    """Run every configured check on a release, and pass, fail, or say what keeps the gate from a verdict."""
    outputs = Outputs(format or [], output or [], Style(width, False if no_color else None, verbose, quiet))
    import datetime

    with one_numpy_thread():
        from bncheck.commands import gate as gating
        from bncheck.config import configured
        from bncheck.findings.report import Run
        from bncheck.judgement.policy import policy_of
        from bncheck.judgement.policy import write_baseline as write_known
        from bncheck.judgement.verdicts import gate_exit_code, gated, remarks
        from bncheck.rules import RULES

    given = {
        "data": data,
        "reference": reference,
        "model": model,
        "trust-pickle": trust_pickle or None,
        "evaluator": evaluator,
        "baseline": baseline,
        "select": select,
        "ignore-rules": ignore,
        "fail-on": fail_on.value if fail_on else None,
    }
    settings = configured(Path.cwd(), config).with_options(given)
    policy = policy_of(settings, [rule.id for rule in RULES])
    items = gating.checkpoints_of(settings, paths or [])
    if not items:
        raise UsageError("no checkpoint is named", "bncheck gate PATH, or checkpoint = ... under [tool.bncheck].")
    today = datetime.date.today()
    with evaluation_progress("gate") as progress:
        found = list(gating.examined(items, settings, gating.processes(jobs), lambda check: progress))
    if write_baseline:
        write_known(write_baseline, found)
        typer.echo(f"wrote {write_baseline}", err=True)
        from bncheck.judgement.policy import read_baseline

        policy = replace(policy, baseline=policy.baseline | read_baseline(str(write_baseline)))
    reports = tuple(gated(report, policy, today) for report in found)
    said = remarks(reports, policy, today)
    code = gate_exit_code(reports)
    outputs.write(Run("gate", reports, code, said))
    raise typer.Exit(code)


@command("config")
def config(
    config: ConfigOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the configuration.")] = False,
    debug: DebugOption = False,
) -> None:
    """Show the configuration that is in effect, and where each value comes from."""
    import json

    from bncheck import config as settings

    if schema:
        typer.echo(json.dumps(settings.schema(), indent=2))
        return
    found = settings.configured(Path.cwd(), config)
    typer.echo(f"# {found.path or 'no configuration: every value is a default'}")
    for key in settings.KEYS:
        value = found[key]
        shown = "(none)" if value is None else json.dumps(value, default=str)
        typer.echo(f"{key} = {shown}  # {found.origin(key)}")


@command("rules")
def rules(
    format: FormatOption = None,
    width: WidthOption = None,
    no_color: NoColorOption = False,
    debug: DebugOption = False,
) -> None:
    """List the rules: what each finds, how severe it is, and what it needs to know."""
    from bncheck.reports import manual

    manual.write_rules(one_format(format), sys.stdout, Style(width, False if no_color else None))


@command("explain")
def explain(
    name: Annotated[str, typer.Argument(metavar="RULE|PARAMETER", help="A rule, or momentum, eps, affine, ...")],
    width: WidthOption = None,
    no_color: NoColorOption = False,
    debug: DebugOption = False,
) -> None:
    """Explain a rule, or a parameter of BatchNorm."""
    from bncheck.reports import manual

    manual.write_explanation(name, sys.stdout, Style(width, False if no_color else None))


def one_format(given: list[Format] | None) -> Format:
    formats = given or [Format.TEXT]
    if len(formats) > 1:
        raise UsageError("only one format can go to the terminal", "Give one --format.")
    return formats[0]


def severity(fail_on: FailOn) -> Severity | None:
    """The severity from which on a run fails; None for never."""
    from bncheck.findings.rule import Severity

    return None if fail_on is FailOn.NEVER else Severity(fail_on.value)


@contextmanager
def one_numpy_thread() -> Iterator[None]:
    """Imports numpy without the threads of its linear algebra: starting them costs as much as the rest of it."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        import numpy  # noqa: F401

        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def with_progress(items: list[Path | Report]) -> Iterator[Path | Report]:
    """The items, with a bar on stderr where there are many and somebody watches."""
    if len(items) <= MANY_FILES or not somebody_watches():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, "checkpoints", console=Console(stderr=True), transient=True)


def finish(name: str, examined: list[Report], outputs: Outputs) -> None:
    """Writes the reports everywhere they are wanted, and exits."""
    from bncheck.findings.report import Run
    from bncheck.judgement.verdicts import exit_code

    code = exit_code(examined)
    outputs.write(Run(name, tuple(examined), code))
    raise typer.Exit(code)


class Outputs:
    """Which format goes where.

    `--output F=FILE` names both; `--output FILE` takes the single --format, or the format that the suffix names.
    What is left of the formats goes to stdout, text if none is asked for.
    """

    def __init__(self, formats: list[Format], files: list[str], style: Style) -> None:
        self.style = style
        self.files: list[tuple[Format, Path]] = []
        left = list(dict.fromkeys(formats))
        wants_text = not formats
        for given in files:
            format_, path, bare = self.destination(given, formats)
            self.files.append((format_, path))
            if bare and format_ in left:
                left.remove(format_)
        if len(left) > 1:
            raise UsageError(
                "only one format can go to stdout", f"Give the others a file: --output {left[1].value}=FILE."
            )
        self.on_stdout = Format.TEXT if wants_text else left[0] if left else None

    @staticmethod
    def destination(given: str, formats: list[Format]) -> tuple[Format, Path, bool]:
        """Format, path, and whether the format was left to the other options."""
        word, equals, path = given.partition("=")
        names = [format_.value for format_ in Format]
        if equals and word in names:
            return Format(word), Path(path), False
        if equals and "/" not in word:
            raise UsageError(f"--output {given}: there is no format {word!r}", f"Formats: {', '.join(names)}.")
        if len(formats) == 1:
            return formats[0], Path(given), True
        suffix = Path(given).suffix.removeprefix(".")
        suffix = SUFFIXES.get(suffix, suffix)
        if suffix in names:
            return Format(suffix), Path(given), True
        raise UsageError(f"--output {given} does not say in which format", f"Write --output json={given}, say.")

    def write(self, run: Run) -> None:
        """The report on stdout first, so that an unwritable file loses nothing."""
        if self.on_stdout:
            print_report(self.on_stdout, run, self.style)
        if self.on_stdout is Format.GITHUB:
            append_job_summary(run)
        for format_, path in self.files:
            try:
                with path.open("w", encoding="utf-8") as out:
                    reports.write(format_, run, out, Style(self.style.width or 80, False, self.style.verbose))
            except OSError as error:
                raise UsageError(f"{path} cannot be written: {error.strerror}", "Check the path of --output.") from None


def append_job_summary(run: Run) -> None:
    """Adds the Markdown report to the page of a job in GitHub Actions; without it, the verdict stands all the same."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as out:
            reports.write(Format.MARKDOWN, run, out, Style())
    except OSError as error:
        complain(f"the job summary {path} cannot be written: {error.strerror}", "Check $GITHUB_STEP_SUMMARY.")


def print_report(format_: Format, run: Run, style: Style) -> None:
    """Writes to stdout; a reader that stops reading (`| head`) does not change the verdict."""
    out: TextIO = sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")
    try:
        reports.write(format_, run, out, style)
        out.flush()
    except BrokenPipeError:
        # Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
