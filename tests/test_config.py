"""`[tool.bncheck]` of pyproject.toml, and bncheck.toml: found, read, and refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from bncheck.config import KEYS, configured
from bncheck.errors import UsageError
from bncheck.options.gating import GateOptions
from bncheck.options.option import make


def write(folder: Path, text: str, name: str = "pyproject.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_without_a_file_every_value_is_its_default(tmp_path: Path) -> None:
    found = configured(tmp_path)
    assert found.path is None
    assert {key: found[key] for key in KEYS} == {key: held.default for key, held in KEYS.items()}
    assert {found.origin(key) for key in KEYS} == {"default"}


def test_the_nearest_table_above_counts(tmp_path: Path) -> None:
    write(tmp_path, '[tool.bncheck]\ncheckpoint = "far.pt"')
    near = write(tmp_path / "project", '[tool.bncheck]\ncheckpoint = "near.pt"')
    below = write(near / "src" / "package", "[project]\nname = 'no table'")
    assert configured(below)["checkpoint"] == str(near / "near.pt")
    assert configured(below).path == near / "pyproject.toml"


def test_a_file_of_its_own_comes_before_pyproject_and_needs_no_table(tmp_path: Path) -> None:
    write(tmp_path, '[tool.bncheck]\ncheckpoint = "other.pt"')
    write(tmp_path, 'checkpoint = "own.pt"', "bncheck.toml")
    assert configured(tmp_path)["checkpoint"] == str(tmp_path / "own.pt")


def test_paths_are_relative_to_the_file_and_short_from_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, f'[tool.bncheck]\ncheckpoint = ["release/a.pt", "{tmp_path}/b.pt"]\nmodel = "net.py:Net"')
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    assert configured(tmp_path)["checkpoint"] == ["release/a.pt", str(tmp_path / "b.pt")]
    assert configured(tmp_path)["model"] == "net.py:Net"
    monkeypatch.chdir(tmp_path / "src")
    assert configured(tmp_path / "src")["checkpoint"] == [str(tmp_path / "release" / "a.pt"), str(tmp_path / "b.pt")]
    assert configured(tmp_path / "src")["model"] == f"{tmp_path / 'net.py'}:Net"


def test_modules_are_no_paths(tmp_path: Path) -> None:
    write(tmp_path, '[tool.bncheck]\nmodel = "torchvision.models:resnet50"\nevaluator = "metrics:accuracy"')
    found = configured(tmp_path)
    assert (found["model"], found["evaluator"]) == ("torchvision.models:resnet50", "metrics:accuracy")


def test_the_command_line_comes_before_the_file_where_it_says_something(tmp_path: Path) -> None:
    write(tmp_path, '[tool.bncheck]\nmodel = "net:Net"\ndevice = "cuda"')
    options = make(GateOptions, {"device": "cpu"}, configured(tmp_path).values)
    assert (options.device, options.model, options.select) == ("cpu", "net:Net", ())


MISTAKES = {
    "a key that there is not": ('chekpoint = "a.pt"', "unknown key 'chekpoint'", "Did you mean checkpoint?"),
    "a number for a path": ("checkpoint = 3", "checkpoint in", "Checkpoints, folders"),
    "numbers in a list of paths": ("checkpoint = [3]", "checkpoint in", "Checkpoints, folders"),
    "a text for a truth": ('trust-pickle = "yes"', "is 'yes', and must be a boolean", "Unpickle"),
    "a truth for a number": ("batch-size = true", "is True, and must be an integer", "Samples in a batch"),
    "too small a number": ("runs = 1", "is 1, and must be at least 2", "evaluated"),
    "no word of the list": (
        'fail-on = "info"',
        "is 'info', and must be one of note, warning, error, never",
        "severity",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_file(name: str, tmp_path: Path) -> None:
    line, message, hint = MISTAKES[name]
    write(tmp_path, f"[tool.bncheck]\n{line}")
    with pytest.raises(UsageError) as error:
        configured(tmp_path)
    assert message in error.value.message
    assert str(tmp_path / "pyproject.toml") in error.value.message
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[tool.bncheck\n", "cannot be read"),
        (b'[tool.bncheck]\ncheckpoint = "\xff"', "cannot be read"),
        (b"[tool]\nbncheck = 3", "tool.bncheck in"),
    ],
    ids=["no TOML", "no UTF-8", "no table"],
)
def test_a_file_that_cannot_be_read_is_told_in_a_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        configured(tmp_path)


@pytest.mark.parametrize("content", ["tool = 3", "[tool]\nruff = 3"])
def test_a_file_of_other_tools_is_passed_over(content: str, tmp_path: Path) -> None:
    write(tmp_path, content)
    assert configured(tmp_path).path is None
