"""`bncheck recalibrate`: gives the BatchNorm layers of a checkpoint other statistics, in a new file.

The statistics are those of another checkpoint, or are estimated on data. The latter alone runs the model and imports
torch; writing runs nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.contents.state_dicts import COUNTER
from bncheck.checkpoints.rewriting.file import check_target, write_checkpoint
from bncheck.checkpoints.rewriting.plan import NewStatistics, choose_group, key_of, plan_rewrite, read_writable
from bncheck.checkpoints.search import single_checkpoint
from bncheck.checkpoints.sources import open_source
from bncheck.commands.on_data import with_configuration
from bncheck.commands.progress import SILENT
from bncheck.errors import UsageError
from bncheck.findings.measurements import EstimationNumbers, NewNumbers, RecalibrationMeasurements
from bncheck.findings.report import Run
from bncheck.judgement import verdicts
from bncheck.judgement.diagnosis import diagnose, diagnose_evaluation
from bncheck.judgement.numbers import shift_numbers
from bncheck.judgement.selection import chosen, fits
from bncheck.judgement.verdicts import exit_code
from bncheck.options.data import Samples
from bncheck.options.model import OneCheckpoint
from bncheck.options.option import make
from bncheck.options.probing import Method, RecalibrateOptions, Variance
from bncheck.pairing.groups import counterparts, left_out, likeliest, prefix_note
from bncheck.pairing.names import SAME_NAMES
from bncheck.rules import DRIFT_RULES, INSPECT_RULES
from bncheck.subjects.shift import shift
from bncheck.wording import few

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from bncheck.checkpoints.sources import Source
    from bncheck.commands.progress import Progress
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.evaluation.probes.recalibrate import Recalibration, RecalibrationOptions
    from bncheck.findings.report import Report
    from bncheck.findings.rule import Rule
    from bncheck.pairing.groups import Counterparts
    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.evaluation import Evaluation
    from bncheck.subjects.layer import BatchNormLayer


OPTIONS = (OneCheckpoint, Samples, RecalibrateOptions)
CATALOGUE = (*INSPECT_RULES, *DRIFT_RULES)  # of the new file, and of the model that runs with it
EXAMPLES = (
    "bncheck recalibrate best.pth --model net.py:Net --data train/ -o best.fixed.pth",
    "bncheck recalibrate best.pth --from before.pth -o best.fixed.pth",
)


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> Run:
    """The report on the new checkpoint.

    Raises:
        BncheckError: what is asked for cannot be done. Then nothing was written.
    """
    whole = with_configuration("recalibrate", said)
    options = make(RecalibrateOptions, whole)
    data = (whole if options.from_ is None else said).get("data")  # --from has no use for those of the configuration
    if (data is None) == (options.from_ is None):
        raise UsageError(
            "statistics come from --data or from --from", "Give one of the two: --data DIR, or --from OTHER."
        )
    if (options.output is None) == (not options.dry_run):
        raise UsageError("the new file is named by --output, or left out by --dry-run", "Give one of the two.")
    path = Path(whole["checkpoint"])
    if options.from_ is not None:
        report = copy_statistics(path, Path(options.from_), options)
    else:
        report = recalibrate_file(path, data, options, progress.samples("recalibrate"))
    return Run("recalibrate", (report,), exit_code([report]), catalogue=CATALOGUE)


def rules_of(options: RecalibrateOptions) -> tuple[Rule, ...]:
    return chosen(CATALOGUE, options.select, options.ignore)


def output_of(options: RecalibrateOptions) -> Path | None:
    """The file to write; None where nothing is."""
    return None if options.output is None or options.dry_run else Path(options.output)


# -- from another checkpoint


def copy_statistics(path: Path, other: Path, options: RecalibrateOptions) -> Report:
    """Writes a copy of a checkpoint that has the statistics of another one, and nothing else of it.

    Layers are matched as `bncheck diff` matches them: by name, prefixes aside.

    Raises:
        BncheckError: a file cannot be read, the layers do not match, or the copy cannot be written.
    """
    path, other = single_checkpoint(path), single_checkpoint(other)
    rules, output = rules_of(options), output_of(options)
    if output:
        check_target(output, [path, other], force=options.force)
    with open_source(path) as source, open_source(other) as other_source:
        checkpoint, other_checkpoint = read_writable(source), read_checkpoint(other_source)
        names_other_alone = is_in(options.group, other_checkpoint) and not is_in(options.group, checkpoint)
        group = choose_group(checkpoint, None if names_other_alone else options.group)
        chosen_layers = layers_named(group, tuple(options.layer), path)
        found = matched(chosen_layers, group, other_checkpoint, options.group)
        statistics = {name: statistics_of(layer, other) for name, layer in found.layers.items()}
        plan = plan_rewrite(source, group.name, statistics)
        numbers = RecalibrationMeasurements(
            str(path),
            str(output) if output else None,
            "copied",
            changes(group, statistics),
            copied_from=str(other),
        )
        if output:
            target = write_checkpoint(plan, output, [path, other], force=options.force)
            report = inspected(target, options, rules)
        else:
            report = diagnose(with_statistics(checkpoint, group, statistics), options.threshold, rules)
    notes = (*match_notes(found, path, other_checkpoint, options.group), *counter_notes(plan.without_counter))
    return finished(report, None, numbers, notes, options)


def is_in(glob: str | None, checkpoint: Checkpoint) -> bool:
    return glob is not None and bool(groups_named(checkpoint, glob))


def groups_named(checkpoint: Checkpoint, glob: str | None) -> tuple[Group, ...]:
    """The groups with layers that the glob names; all of them without one."""
    groups = tuple(group for group in checkpoint.groups if group.layers)
    if glob is None:
        return groups
    exact = tuple(group for group in groups if group.name == glob)
    return exact or tuple(group for group in groups if fits(group.name, (glob,)))


def layers_named(group: Group, globs: tuple[str, ...], path: Path) -> tuple[BatchNormLayer, ...]:
    """The layers with statistics that the globs name."""
    held = tuple(
        layer
        for layer in group.layers
        if fits(layer.name, globs) and layer.running_mean is not None and layer.running_var is not None
    )
    if not held:
        wanted = f" that --layer {' '.join(globs)} names" if globs else ""
        raise UsageError(f"{path} has no BatchNorm layer with statistics{wanted}", "bncheck inspect shows its layers.")
    return held


def matched(layers: tuple[BatchNormLayer, ...], group: Group, other: Checkpoint, wanted: str | None) -> Counterparts:
    """Each layer with the one of the other checkpoint that belongs to it.

    Raises:
        UsageError: one has none there, or the other holds several groups that could be meant.
    """
    wanted = wanted if is_in(wanted, other) else None
    found = likeliest(layers, group, groups_named(other, wanted)) or counterparts(
        layers, group, choose_group(other, wanted)
    )
    missing = [layer.name for layer in layers if layer.name not in found.layers]
    if missing:
        raise UsageError(
            f"{other.source} does not have the layers {few(missing)}",
            "Both must be of the same network; --layer restricts what is copied.",
        )
    return found


def match_notes(found: Counterparts, path: Path, other: Checkpoint, wanted: str | None) -> Iterator[str]:
    """How names and groups were brought together, where that was not said."""
    if found.naming != SAME_NAMES:
        yield prefix_note(found.naming, str(path), other.source)
    if len(groups_named(other, None)) > 1 and not is_in(wanted, other):
        yield left_out(other, found.group, "--group", "taken")


def statistics_of(layer: BatchNormLayer, other: Path) -> NewStatistics:
    """The statistics to copy, from a layer that has them."""
    import numpy as np

    mean, variance, counter = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if mean is None or variance is None:
        raise UsageError(f"{other} has no statistics for {layer.name}", "--layer restricts what is copied.")
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all()):
        raise UsageError(f"{other} has unusable statistics for {layer.name}", "bncheck inspect shows what is wrong.")
    whole = counter is not None and counter == int(counter)
    return NewStatistics(mean, variance, int(counter) if whole and counter is not None else None)


# -- from data


def recalibrate_file(
    path: Path,
    data: Any,
    options: RecalibrateOptions,
    progress: Callable[[int], None] = lambda samples: None,
) -> Report:
    """Writes a copy of a checkpoint whose statistics are those of data, and measures both.

    Args:
        path: the checkpoint.
        data: what `--data` names, or batches.
        options: how the model and the data are made, how statistics are estimated, and what becomes of the file.
        progress: told the number of samples of each batch that is done.

    Raises:
        BncheckError: the model, the data or the file fail.
    """
    path = single_checkpoint(path)
    rules, output = rules_of(options), output_of(options)
    if output:
        check_target(output, [path], force=options.force)
    with open_source(path) as source:
        checkpoint = read_writable(source)
        group = choose_group(checkpoint, options.group)
        from bncheck.evaluation.models.foreign import importable
        from bncheck.evaluation.models.weights import names_in_file
        from bncheck.evaluation.probes.drift import drift
        from bncheck.evaluation.probes.recalibrate import chosen_layers, recalibrate
        from bncheck.evaluation.session import load_model, opened

        estimation = estimation_of(options)
        runnable, batches = opened(path, data, options)
        names = names_in_file(runnable, group)
        asked, _ = chosen_layers(runnable, estimation)
        rehearse(source, group, [names[name] for name in asked])
        with importable(options.python_path):
            before = drift(runnable, batches, progress=progress)
            found = recalibrate(runnable, batches, estimation, progress)
            statistics = {names[name]: new for name, new in found.statistics.items()}
            plan = plan_rewrite(source, group.name, statistics)
            if output:
                target = write_checkpoint(plan, output, [path], force=options.force)
                report = inspected(target, options, rules)
                after = drift(load_model(target, options), batches, progress=progress)
            else:
                report = diagnose(with_statistics(checkpoint, group, statistics), options.threshold, rules)
                after = rehearsed(runnable, found, lambda copy: drift(copy, batches, progress=progress))
    numbers = RecalibrationMeasurements(
        str(path),
        str(output) if output else None,
        options.method,
        changes(group, statistics),
        {names.get(name, name): reason for name, reason in found.kept.items()},
        estimated=estimation_numbers(found, options, before, after),
    )
    judged = diagnose_evaluation(after, options.threshold, rules)
    notes = (*found.notes, *counter_notes(plan.without_counter), *before.notes)
    return finished(report, judged, numbers, notes, options)


def rehearse(source: Source, group: Group, names: list[str]) -> None:
    """Raises what writing to the layers would raise, before a long run and not after it."""
    import numpy as np

    by_name = {layer.name: layer for layer in group.layers}
    held = {name: by_name[name].running_mean for name in names if name in by_name}
    blank = {
        name: NewStatistics(np.zeros(mean.size), np.zeros(mean.size), 0)
        for name, mean in held.items()
        if mean is not None
    }
    plan_rewrite(source, group.name, blank)


def rehearsed(runnable: Runnable, found: Recalibration, measure: Callable[[Runnable], Evaluation]) -> Evaluation:
    """What is measured of the live model with the new statistics in it; it is given back as it came."""
    from bncheck.evaluation.models.live import live_group
    from bncheck.evaluation.probes.recalibrate import apply
    from bncheck.evaluation.restoring import restored

    with restored(runnable.module):
        apply(runnable.layers, found.statistics)
        return measure(replace(runnable, described=live_group(runnable.module).layers))


def estimation_numbers(
    found: Recalibration, options: RecalibrateOptions, before: Evaluation, after: Evaluation
) -> EstimationNumbers:
    """What was measured on data."""
    return EstimationNumbers(
        variance=options.variance,
        images=found.samples,
        batches=found.batches,
        passes=found.passes,
        device=after.device,
        artefact=after.artefact,
        data=dict(after.data),
        before=before.fit,
        after=after.fit,
    )


def recalibrate_module(module: torch.nn.Module, data: Any, options: RecalibrateOptions) -> Report:
    """Gives a live model the statistics of data, and measures it before and after; what fails leaves it as it was.

    Raises:
        BncheckError: the model or the data fail.
    """
    from bncheck.evaluation.models.live import live_checkpoint, live_group
    from bncheck.evaluation.probes.drift import drift
    from bncheck.evaluation.probes.recalibrate import apply, recalibrate
    from bncheck.evaluation.session import opened

    estimation, rules = estimation_of(options), rules_of(options)
    runnable, batches = opened(module, data, options)
    checkpoint = live_checkpoint(runnable.module)
    before = drift(runnable, batches)
    found = recalibrate(runnable, batches, estimation)
    after = rehearsed(runnable, found, lambda copy: drift(copy, batches))
    numbers = RecalibrationMeasurements(
        checkpoint.source,
        checkpoint.source,
        options.method,
        changes(checkpoint.groups[0], found.statistics),
        dict(found.kept),
        estimated=estimation_numbers(found, options, before, after),
    )
    apply(runnable.layers, found.statistics)
    live = replace(checkpoint, groups=(live_group(runnable.module),))
    report = diagnose(live, options.threshold, rules)
    return finished(report, diagnose_evaluation(after, options.threshold, rules), numbers, found.notes, options)


def estimation_of(options: RecalibrateOptions) -> RecalibrationOptions:
    """How statistics are estimated."""
    from bncheck.evaluation.probes.recalibrate import RecalibrationOptions

    return RecalibrationOptions(
        Method(options.method), Variance(options.variance), tuple(options.layer), options.keep_frozen
    )


# -- the report


def inspected(target: Path, options: RecalibrateOptions, rules: tuple[Rule, ...]) -> Report:
    """The report on the file that was written."""
    with open_source(target) as source:
        return diagnose(read_checkpoint(source), options.threshold, rules)


def with_statistics(checkpoint: Checkpoint, group: Group, statistics: Mapping[str, NewStatistics]) -> Checkpoint:
    """The checkpoint as it would be with other statistics."""

    def changed(layer: BatchNormLayer) -> BatchNormLayer:
        new = statistics.get(layer.name)
        if new is None:
            return layer
        counts = new.counter is not None and key_of(layer, COUNTER) in group.tensors
        return replace(
            layer,
            running_mean=layer.running_mean if new.mean is None else new.mean,
            running_var=layer.running_var if new.variance is None else new.variance,
            num_batches_tracked=new.counter if counts else layer.num_batches_tracked,
        )

    groups = tuple(
        replace(held, layers=tuple(map(changed, held.layers))) if held.name == group.name else held
        for held in checkpoint.groups
    )
    return replace(checkpoint, groups=groups)


def changes(group: Group, statistics: Mapping[str, NewStatistics]) -> dict[str, NewNumbers]:
    """How far the statistics of each layer go, in standard deviations of what it had, and what its counter becomes."""
    numbers: dict[str, NewNumbers] = {}
    for layer in group.layers:
        new = statistics.get(layer.name)
        if new is not None and new.mean is not None and new.variance is not None:
            moved = shift_numbers(shift(new.mean, new.variance, layer))
            numbers[layer.name] = NewNumbers(moved, (layer.num_batches_tracked, new.counter))
    return numbers


def counter_notes(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"no {COUNTER} is kept for {few(names)}, so that none was written",)


def finished(
    report: Report,
    judged: Report | None,
    numbers: RecalibrationMeasurements,
    notes: tuple[str, ...],
    options: RecalibrateOptions,
) -> Report:
    """The report on the new statistics: of the file, of the model that ran with them, and of what was done."""
    findings = (*report.findings, *(judged.findings if judged else ()))
    return replace(
        report,
        verdict=verdicts.verdict(findings, bool(report.layers), options.threshold),
        findings=findings,
        undecided=(*report.undecided, *(judged.undecided if judged else ())),
        rules=tuple(dict.fromkeys((*report.rules, *(judged.rules if judged else ())))),
        measurements=numbers,
        notes=tuple(dict.fromkeys((*report.notes, *notes))),
    )
