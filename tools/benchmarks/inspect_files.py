"""How long `bncheck inspect` takes on large files, as a ratio to `import torch` in the same run, and its memory.

The budgets: at most 0.15 of importing torch for 550 MB, the whole process; 60 MiB; no more of either for 2.4 GB; 10 ms
for one more checkpoint of the size of a ResNet-18. Run by `make bench`. Nothing here is asserted: machines differ.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 9
PYTHON = sys.executable
# A test runner may forbid Python to cache its bytecode, which an installed program always has.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

WRITE = """
import sys, torch
path, megabytes, blocks = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
channels = int((megabytes * 1e6 / 4 / blocks / 9) ** 0.5)
state = {}
weight = torch.randn(channels, channels, 3, 3)
for block in range(blocks):
    name = f"layer{block // 25 + 1}.{block % 25}"
    state[f"{name}.conv1.weight"] = weight.clone()
    state[f"{name}.bn1.weight"], state[f"{name}.bn1.bias"] = torch.rand(channels), torch.randn(channels)
    state[f"{name}.bn1.running_mean"] = torch.randn(channels)
    state[f"{name}.bn1.running_var"] = torch.rand(channels) + 0.1
    state[f"{name}.bn1.num_batches_tracked"] = torch.tensor(5000)
torch.save(state, path)
"""

BYTES_READ = """
import sys
from pathlib import Path
from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
with FileSource(Path(sys.argv[1])) as source:
    layers = read_checkpoint(source).layers
    print(len(layers), source.bytes_read, source.size)
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds of wall time and MiB at the peak of a whole process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    """Prints a table."""
    torch = [PYTHON, "-c", "import torch"]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.pt") for name in ("550 MB", "2.4 GB")}
        for (name, path), megabytes in zip(files.items(), (550, 2400), strict=True):
            subprocess.run([PYTHON, "-c", WRITE, path, str(megabytes), "100"], check=True)
            read = subprocess.run([PYTHON, "-c", BYTES_READ, path], check=True, capture_output=True, text=True).stdout
            layers, bytes_read, size = map(int, read.split())
            print(f"{name}: {layers} BatchNorm2d layers, {bytes_read:,} of {size:,} bytes read")
        copies = Path(folder, "copies")
        copies.mkdir()
        subprocess.run([PYTHON, "-c", WRITE, copies / "0.pt", "45", "20"], check=True)
        for index in range(1, 50):
            shutil.copyfile(copies / "0.pt", copies / f"{index}.pt")

        bncheck = [PYTHON, "-m", "bncheck", "inspect"]
        commands = {
            "import torch": torch,
            "python -c pass": [PYTHON, "-c", "pass"],
            "bncheck --version": [PYTHON, "-m", "bncheck", "--version"],
            "inspect 550 MB": [*bncheck, str(files["550 MB"])],
            "inspect 2.4 GB": [*bncheck, str(files["2.4 GB"])],
            "inspect 1 x 45 MB": [*bncheck, str(copies / "0.pt")],
            "inspect 50 x 45 MB": [*bncheck, "-q", str(copies)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        peaks: dict[str, float] = {}
        for index in range(ROUNDS + 1):
            for name, command in commands.items():
                seconds, peak = measure(command)
                if index:  # the first round fills the caches
                    times[name].append(seconds)
                    peaks[name] = max(peaks.get(name, 0), peak)
        print(f"\n{'median of ' + str(ROUNDS) + ' rounds':24}{'ms':>8}{'of import torch':>18}{'peak MiB':>10}")
        for name, measured in times.items():
            ratio = statistics.median(a / b for a, b in zip(measured, times["import torch"], strict=True))
            print(f"{name:24}{1000 * statistics.median(measured):8.0f}{ratio:18.3f}{peaks[name]:10.1f}")
        more = statistics.median(
            (a - b) / 49 for a, b in zip(times["inspect 50 x 45 MB"], times["inspect 1 x 45 MB"], strict=True)
        )
        print(f"{'one more checkpoint':24}{1000 * more:8.1f}")


if __name__ == "__main__":
    main()
