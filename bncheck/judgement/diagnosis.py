"""Applies the rules to a subject and writes down what they say."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from bncheck.findings.report import Finding, Problem, Report, Undecided, Verdict
from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.judgement import verdicts
from bncheck.judgement.summaries import summarise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bncheck.errors import BncheckError
    from bncheck.subjects.checkpoint import Checkpoint
    from bncheck.subjects.evaluation import Evaluation
    from bncheck.subjects.pair import CheckpointPair


def diagnose(checkpoint: Checkpoint, fail_on: Severity | None, rules: Sequence[Rule]) -> Report:
    """The report on a checkpoint.

    Args:
        checkpoint: what was read.
        fail_on: the severity from which on a finding fails the checkpoint; None for never.
        rules: those that are asked.
    """
    asked = [rule for rule in rules if rule.layer or rule.checkpoint]
    findings, undecided = judged(((rule, ask(rule, checkpoint)) for rule in asked), len(checkpoint.layers))
    return Report(
        subjects=(checkpoint.source,),
        format=checkpoint.format,
        verdict=verdicts.verdict(findings, bool(checkpoint.layers), fail_on),
        layers=tuple(summarise(layer) for layer in checkpoint.layers),
        findings=findings,
        undecided=undecided,
        facts=dict(checkpoint.facts),
        globals=tuple((reference.path, reference.use) for reference in checkpoint.globals),
        rules=tuple(rule.id for rule in asked),
        notes=checkpoint.notes,
        fail_on=fail_on,
    )


def diagnose_evaluation(
    evaluation: Evaluation, fail_on: Severity | None, rules: Sequence[Rule], *, channels: bool = False
) -> Report:
    """The report on a model that was run on data.

    Args:
        evaluation: what the probes saw.
        fail_on: the severity from which on a finding fails it; None for never.
        rules: those that are asked.
        channels: whether the measurements have arrays per channel.
    """
    from bncheck.judgement.numbers import measurements_of

    layers = [evaluated.layer for evaluated in evaluation.layers]
    asked = [(rule, rule.evaluation) for rule in rules if rule.evaluation]
    findings, undecided = judged(((rule, check(evaluation)) for rule, check in asked), len(layers))
    open_rules = {open_.rule for open_ in undecided}
    return Report(
        subjects=(evaluation.source,),
        format=evaluation.artefact,
        verdict=verdicts.verdict(findings, bool(layers), fail_on),
        layers=tuple(summarise(layer) for layer in layers),
        findings=findings,
        undecided=undecided,
        measurements=measurements_of(evaluation, channels=channels),
        rules=tuple(rule.id for rule, _ in asked),
        notes=evaluation.notes,
        fail_on=fail_on,
        all_clear=tuple(rule.all_clear for rule, _ in asked if rule.all_clear and rule.id not in open_rules),
    )


def diagnose_pair(pair: CheckpointPair, fail_on: Severity | None, rules: Sequence[Rule]) -> Report:
    """The report on what happened between two checkpoints.

    Its layers are those of the second; of the layers whose statistics it has not, those of the first.

    Args:
        pair: two checkpoints whose layers were matched.
        fail_on: the severity from which on a finding fails it; None for never.
        rules: those that are asked.
    """
    from bncheck.judgement.numbers import pair_numbers

    layers = [change.after for change in pair.changes]
    layers += [layer for group in pair.groups for layer in group.without_statistics]
    asked = [(rule, rule.pair) for rule in rules if rule.pair]
    findings, undecided = judged(((rule, check(pair)) for rule, check in asked), len(pair.changes))
    formats = (pair.before.format, pair.after.format)
    return Report(
        subjects=(pair.before.source, pair.after.source),
        format=formats[0] if len(set(formats)) == 1 else " -> ".join(formats),
        verdict=verdicts.verdict(findings, bool(layers), fail_on),
        layers=tuple(summarise(layer) for layer in layers),
        findings=findings,
        undecided=undecided,
        measurements=pair_numbers(pair),
        rules=tuple(rule.id for rule, _ in asked),
        notes=pair.notes,
        fail_on=fail_on,
    )


def judged(
    answers: Iterable[tuple[Rule, Iterable[Evidence | CannotTell]]], layers: int
) -> tuple[tuple[Finding, ...], tuple[Undecided, ...]]:
    """What the rules found and what they left open, each cause told once."""
    said: list[tuple[Rule, Evidence]] = []
    open_questions: list[tuple[Rule, CannotTell]] = []
    for rule, given in answers:
        for answer in given:
            if isinstance(answer, Evidence):
                said.append((rule, answer))
            else:
                open_questions.append((rule, answer))
    findings = tuple(finding(rule, evidence) for rule, evidence in without_superseded(said))
    return findings, fold(open_questions, layers)


def unreadable(subject: str, error: BncheckError) -> Report:
    """The report on an input that could not be examined."""
    return Report((subject,), None, Verdict.UNDECIDED, error=Problem(error.message, error.hint))


def ask(rule: Rule, checkpoint: Checkpoint) -> Iterable[Evidence | CannotTell]:
    if rule.checkpoint is not None:
        yield from rule.checkpoint(checkpoint)
    if rule.layer is not None:
        for layer in checkpoint.layers:
            yield from rule.layer(layer)


def without_superseded(said: list[tuple[Rule, Evidence]]) -> list[tuple[Rule, Evidence]]:
    """Leaves out what another rule has already explained about the same layer."""
    silenced: set[tuple[str, int]] = set()
    for rule, evidence in said:
        if evidence.layer is not None:
            silenced.update((other, id(evidence.layer)) for other in rule.supersedes)
    return [(rule, evidence) for rule, evidence in said if (rule.id, id(evidence.layer)) not in silenced]


def finding(rule: Rule, evidence: Evidence) -> Finding:
    layer = evidence.layer
    return Finding(
        rule=rule.id,
        severity=evidence.severity or rule.severity,
        layer=layer.name if layer else None,
        group=layer.group if layer else evidence.group,
        message=evidence.message,
        measured=evidence.measured,
        fix=evidence.fix,
        headline=rule.headline,
        prevails=rule.prevails,
    )


def fold(open_questions: list[tuple[Rule, CannotTell]], layers: int) -> tuple[Undecided, ...]:
    """Tells a reason once where it holds for every layer."""
    by_reason: defaultdict[tuple[str, str], list[CannotTell]] = defaultdict(list)
    for rule, answer in open_questions:
        by_reason[rule.id, answer.reason].append(answer)
    folded = []
    for (rule_id, reason), answers in by_reason.items():
        if len(answers) == layers and layers > 1:
            folded.append(Undecided(rule_id, None, None, reason))
        else:
            folded.extend(
                Undecided(rule_id, a.layer.name if a.layer else None, a.layer.group if a.layer else a.group, reason)
                for a in answers
            )
    return tuple(folded)
