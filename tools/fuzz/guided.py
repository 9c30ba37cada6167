"""The same fuzzing guided by coverage, where atheris is installed: `python tools/fuzz/guided.py -runs=20000`.

Inputs that reach new code are kept and mutated further. Options are those of libFuzzer; the corpus starts with the real
files of `fuzz_readers.seeds`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import atheris

ROOT = Path(__file__).parent.parent.parent
WRITE_SEEDS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tools.fuzz.fuzz_readers import seeds
for number, data in enumerate(seeds().values()):
    Path(sys.argv[2], str(number)).write_bytes(data)
"""


def main() -> None:
    """Runs until the count of inputs is reached or one crashes, which libFuzzer writes to a file."""
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["bncheck"]):
        for name in ("bncheck.judgement.diagnosis", "bncheck.reports.json", "bncheck.reports.text.run"):
            import_module(name)
        for _ in import_module("bncheck.checkpoints.formats").readers():
            pass  # each is imported when it is asked for
        examine = import_module("tools.fuzz.fuzz_readers").examine

    def one_input(data: bytes) -> None:
        examine(bytes(data))

    with tempfile.TemporaryDirectory() as corpus:
        subprocess.run([sys.executable, "-c", WRITE_SEEDS, ROOT, corpus], check=True)
        options = ["-max_len=32000", "-timeout=5", "-rss_limit_mb=600", "-seed=1", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], corpus, *options, *sys.argv[1:]], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
