"""What each kind of artefact lets be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bncheck.evaluation.models.loading import load_runnable
from bncheck.evaluation.probes.abilities import LIMITS, UNDECIDED, Kind, Probe, inability, kind_of
from tests.evaluation.artefacts import export, script


def test_the_table_says_what_each_artefact_lets_be_asked(tmp_path: Path, net: Any, options: Any) -> None:
    model = net().eval()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    runnables = {
        Kind.STATE_DICT: load_runnable(tmp_path / "m.pt", options()),
        Kind.SCRIPTED: load_runnable(script(model, tmp_path / "s.pt"), options(None)),
        Kind.TRACED: load_runnable(script(model, tmp_path / "t.pt", how="trace"), options(None)),
        Kind.EXPORTED: load_runnable(export(model, tmp_path / "e.pt2"), options(None)),
    }
    assert [kind_of(runnable) for runnable in runnables.values()] == list(runnables)
    for kind, runnable in runnables.items():
        assert {probe: inability(runnable, probe) for probe in Probe} == {
            probe: UNDECIDED.get((kind, probe)) for probe in Probe
        }
    assert inability(runnables[Kind.STATE_DICT], Probe.MOVED, has_evaluator=True) is None
    assert not set(UNDECIDED) & set(LIMITS)
