"""What `--data` names is opened by what it is, and never guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bncheck.errors import UnsupportedError, UsageError
from bncheck.evaluation.data.opening import open_data
from bncheck.options.data import DataOptions

HEADER = "import random, sys, torch, numpy as np\nfrom torch.utils.data import DataLoader, TensorDataset\n"


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data .*/images does not exist"):
        open_data(str(tmp_path / "images"), DataOptions())


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        open_data(str(tmp_path), DataOptions())


def test_a_folder_with_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UsageError, match="holds no images and no arrays") as raised:
        open_data(str(tmp_path), DataOptions())
    assert ".npz" in raised.value.hint


def test_a_folder_of_both_kinds_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    np.save(tmp_path / "mean.npy", np.ones(3))
    with pytest.raises(UsageError, match=r"holds both 1 image and 1 file of arrays, such as mean\.npy"):
        open_data(str(tmp_path), DataOptions())


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "table.csv").touch()
    with pytest.raises(UnsupportedError, match=r"table\.csv is a file of a kind that is not read"):
        open_data(str(tmp_path / "table.csv"), DataOptions())
