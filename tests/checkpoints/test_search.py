"""Which files an argument names, and which is the one."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from bncheck.checkpoints.search import find_checkpoints, single_checkpoint
from bncheck.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checkpoints, one of them by its content alone, and what is passed over."""
    for name in ("a.pt", "sub/b.pth", "sub/without-suffix", ".hidden/c.pt", "__pycache__/d.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save(nn.BatchNorm1d(2).state_dict(), tmp_path / name)
    (tmp_path / "notes.txt").write_text("no checkpoint")
    return tmp_path


def test_a_folder_is_searched_by_content_and_suffix(folder: Path) -> None:
    (folder / "truncated.safetensors").write_bytes(b"")
    expected = ["a.pt", "truncated.safetensors", "sub/b.pth", "sub/without-suffix"]
    assert [folder / name for name in expected] == find_checkpoints(folder)


def test_a_pattern_is_expanded_and_may_match_folders(folder: Path) -> None:
    assert [folder / "a.pt"] == find_checkpoints(f"{folder}/*.p*")
    assert [folder / "sub" / "b.pth", folder / "sub" / "without-suffix"] == find_checkpoints(f"{folder}/s*b")
    expected = ["__pycache__/d.pt", "a.pt", "sub/b.pth"]  # what a pattern names is not passed over
    assert [folder / name for name in expected] == find_checkpoints(f"{folder}/**/*.pt*")


def test_a_file_is_what_it_is_even_if_its_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "best[1].pt").write_bytes(b"")
    assert [tmp_path / "best[1].pt"] == find_checkpoints(tmp_path / "best[1].pt")
    assert [Path("absent.pt")] == find_checkpoints("absent.pt")  # opening it says what is wrong


@pytest.mark.parametrize(("name", "complaint"), [("", "holds no checkpoint"), ("*.pt", "matches no checkpoint")])
def test_a_folder_or_pattern_without_checkpoints_is_an_error(tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        find_checkpoints(os.path.join(tmp_path, name))


def test_the_one_checkpoint_of_a_folder_or_pattern(folder: Path) -> None:
    assert single_checkpoint(folder / "a.pt") == single_checkpoint(f"{folder}/a*") == folder / "a.pt"
    (folder / "sub" / "without-suffix").unlink()
    assert folder / "sub" / "b.pth" == single_checkpoint(folder / "sub")


def test_several_are_named_in_the_error(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"sub holds 2 checkpoints: .*b\.pth.*without-suffix") as raised:
        single_checkpoint(folder / "sub")
    assert raised.value.hint == "Give one of them."
