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
MOST_SECONDS = 30.0
MOST_MEBIBYTES = 300.0
# One sentence, even if the file has its say in it.
LONGEST_MESSAGE = 600
TAKES_LONG = 0.3

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

Inspect = Callable[..., Outcome]


QUICK = [
    trick
    for trick in (*BAD_INPUT, *EXECUTION, *ZIP_FILES, *NAMES)
    if "mega" not in trick.name and "00,000" not in trick.name
]


def parameter(trick: Trick) -> Any:
    marks = []
    if trick.write is hostile.forbidden:
        marks.append(pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file"))
    return pytest.param(trick, id=trick.name, marks=marks)


@pytest.fixture(scope="module")
def inspect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inspect]:
    """Runs `bncheck inspect` on a file in the arena."""
    place = tmp_path_factory.mktemp("arena")
    code = "from tests.checkpoints.hostile import serve; serve()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=place, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as arena:
        assert arena.stdin
        assert arena.stdout

        def run(path: Path, folder: Path, *arguments: str) -> Outcome:
            files = {name: str(place / name) for name in ("stdout", "stderr", "forbidden")}
            order = {"arguments": ["inspect", str(path), *arguments], "folder": str(folder), **files}
            arena.stdin.write(json.dumps(order).encode() + b"\n")
            arena.stdin.flush()
            answer = json.loads(arena.stdout.readline())
            texts = {name: Path(file).read_text(encoding="utf-8") for name, file in files.items()}
            return Outcome(
                code=max(answer["code"], 0),
                signal=max(-answer["code"], 0),
                stdout=texts["stdout"],
                stderr=texts["stderr"],
                forbidden=texts["forbidden"].splitlines(),
                seconds=answer["seconds"],
                mebibytes=answer["mebibytes"],
            )

        yield run
        arena.stdin.close()


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What a folder holds: size, time of the last change and permissions of each file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = status.st_size, status.st_mtime_ns, status.st_mode
    return found


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def assert_harmless(outcome: Outcome) -> None:
    assert outcome.signal == 0, f"ended by signal {outcome.signal} after {outcome.seconds:.1f} s"
    assert outcome.code in {0, 1, 2, 3}
    assert outcome.forbidden == []
    assert outcome.stderr == ""
    assert outcome.seconds <= MOST_SECONDS
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
