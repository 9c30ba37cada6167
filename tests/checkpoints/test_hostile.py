"""Files that were made to harm whoever reads them: bncheck reads each within its bounds, or says why not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.checkpoints import hostile
from tests.checkpoints.hostile import (
    BAD_INPUT,
    EXECUTION,
    MARK,
    NAMES,
    TRICKS,
    ZIP_FILES,
    End,
    Outcome,
    Trick,
)

ROOT = Path(__file__).parents[2]
# bncheck promises an answer to any file within these. The time is that of the processor, and far above what any
# file needs: it only tells an answer from none.
MOST_SECONDS
    assert outcome.mebibytes <= MOST_MEBIBYTES


def assert_ends_as(end: End, report: dict[str, Any], code: int, path: Path) -> None:
    if report["error"]:
        assert end in (End.REFUSED, End.ANY), report["error"]["message"]
        assert code == 2
        message, hint = report["error"]["message"], report["error"]["hint"]
        assert message
        assert hint
        assert len(message) <= LONGEST_MESSAGE + len(str(path))
        assert "bncheck itself failed" not in message
        return
    accused = any(f["rule"] == "unexpected-globals" and f["severity"] == "error" for f in report["findings"])
    if report["layers"]:
        assert code in (0, 1)
        assert end in (End.LAYERS, End.ACCUSED, End.ANY)
    else:
        assert code in (1, 3)
        assert end in (End.EMPTY, End.ANY)
    assert accused == (end is End.ACCUSED) or end is End.ANY


@pytest.mark.parametrize("trick", [parameter(trick) for trick in TRICKS])
def test_a_hostile_file_is_read_within_bounds_or_refused(trick: Trick, tmp_path: Path, inspect: Inspect) -> None:
    path = trick.write(tmp_path)
    before = listing(tmp_path)

    as_json = inspect(path, tmp_path, "--format", "json")
    assert before == listing(tmp_path)
    assert_harmless(as_json)
    run = json.loads(as_json.stdout, parse_constant=refuse)
    assert run["exit_code"] == as_json.code
    [report] = run["reports"]
    assert_ends_as(trick.end, report, as_json.code, path)

    if not report["layers"] and as_json.seconds > TAKES_LONG:
        return  # a sentence reads the same in both formats
    as_text = inspect(path, tmp_path, "--width", "80")
    assert before == listing(tmp_path)
    assert_harmless(as_text)
    assert as_text.code == as_json.code
    assert sorted({character for character in as_text.stdout if not character.isprintable()} - {"\n"}) == []


def test_the_arena_sees_what_is_written(tmp_path: Path, inspect: Inspect) -> None:
    path = hostile.save(tmp_path, hostile.beside_a_layer(b"N"))
    outcome = inspect(path, tmp_path, "--output", f"json={tmp_path / 'report.json'}")
    assert any(event.startswith("open ") for event in outcome.forbidden)
    assert (tmp_path / "report.json").exists()


def test_each_trick_has_a_name_of_its_own() -> None:
    assert len(TRICKS) == len({trick.name for trick in TRICKS})


def test_one_call_of_the_command_survives_many_hostile_files(tmp_path: Path) -> None:
    paths = []
    for number, trick in enumerate(QUICK):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(trick.write(folder))
    before = listing(tmp_path)
    command = [sys.executable, "-B", "-m", "bncheck", "inspect", *map(str, paths), "--format", "json"]
    ended = subprocess.run(command, check=False, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert ended.stderr == b""
    assert ended.returncode == 2
    assert before == listing(tmp_path)
    reports = json.loads(ended.stdout, parse_constant=refuse)["reports"]
    assert len(paths) == len(reports)


LOAD_FOR_REAL = """
import contextlib, sys, torch
for path in sys.argv[1:]:
    with contextlib.suppress(BaseException):
        sys.path.insert(0, path.rpartition("/")[0])
        torch.load(path, weights_only=False)
"""


def test_the_payloads_would_run_if_they_were_unpickled(tmp_path: Path) -> None:
    """Otherwise bncheck would pass for a reason that is not its own."""
    live = [trick for trick in TRICKS if trick.live]
    paths = []
    for number, trick in enumerate(live):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(trick.write(folder))
    command = [sys.executable, "-W", "ignore", "-c", LOAD_FOR_REAL, *map(str, paths)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=60)
    assert [trick.name for trick in live] == [
        trick.name for trick, path in zip(live, paths, strict=True) if (path.parent / MARK).exists()
    ]
