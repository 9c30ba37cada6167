"""Mutates real files of every format and reads them, judges them and writes the reports.

    python tools/fuzz/fuzz_readers.py --count 20000 --seed 1 --jobs 2

Whatever a file holds, the outcome is a report or a BncheckError, within five seconds and 300 MiB. Anything else is a
crash: it is written to tools/fuzz/crashes/, and becomes a file of tools/fuzz/regressions/ when it is fixed.
Archives are mutated from outside and from inside (an entry is changed and the archive put together again), because a
changed byte in the table of contents hides the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import random
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
CRASHES = Path(__file__).parent / "crashes"
SECONDS = 5
MAX_MIB = 300

TOKENS = [
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x80\x02", b"cos\nsystem\n", b"(", b".", b"R", b"b", b"}", b"\x5d",
    b")", b"0", b"\x81", b"\x92", b"\x93", b"\x94", b"Q", b"q\x00", b"h\x00", b"r\xff\xff\xff\xff",
    b"B\xff\xff\xff\x7f", b"\x8a\xff", b"J\xff\xff\xff\xff", b"K\x00", b"M\xff\xff", b"t", b"\x85", b"u", b"s", b"e",
    b"a", b"2", b"1", b"N", b"\xff" * 4, b"\x00" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b'"shape":[-1', b"[" * 64,
    b"nan", b"1e999", b"..", b"/", b"running_mean", b"running_var", b"num_batches_tracked", b"_modules", b"_buffers",
    b"training", b"torch.batch_norm", b"True", b"False", b"None",
]  # fmt: skip


def seeds() -> dict[str, bytes]:
    """Small real files, one or more of each format, written by the real libraries."""
    import torch
    from safetensors.torch import save
    from torch import nn

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, affine=False)).eval()

    def torch_file(held: Any, **options: Any) -> bytes:
        out = io.BytesIO()
        torch.save(held, out, **options)
        return out.getvalue()

    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    training = {"state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    made = {
        "zip state_dict": torch_file(network.state_dict()),
        "zip module": torch_file(network),
        "zip module, protocol 4": torch_file({"model": network}, pickle_protocol=4),
        "zip training": torch_file(training),
        "legacy state_dict": torch_file(training, _use_new_zipfile_serialization=False),
        "legacy module": torch_file(network, _use_new_zipfile_serialization=False),
        "safetensors": save(network.state_dict(), {"format": "pt"}),
        "index": json.dumps({"weight_map": {"bn.running_mean": "a.safetensors"}}).encode(),
    }
    example = torch.ones(1, 2, 4, 4)
    for name, module in (("scripted", torch.jit.script(network)), ("traced", torch.jit.trace(network, example))):
        out = io.BytesIO()
        torch.jit.save(module, out)
        made[name] = out.getvalue()
    out = io.BytesIO()
    torch.export.save(torch.export.export(network, (torch.ones(1, 2, 4, 4),)), out)
    made["pt2"] = out.getvalue()
    out = io.BytesIO()
    torch.onnx.export(network, (torch.ones(1, 2, 4, 4),), out, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE,
                      do_constant_folding=False)  # fmt: skip
    made["onnx"] = out.getvalue()
    return made


class MemorySource:
    """Bytes as a source without siblings."""

    def __init__(self, data: bytes) -> None:
        self.name, self.data, self.size = "fuzzed", data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        from bncheck.errors import UnreadableError

        if offset < 0 or length < 0 or offset + length > self.size:
            raise UnreadableError("fuzzed ends", "")
        return self.data[offset : offset + length]

    def sibling(self, name: str) -> MemorySource:
        from bncheck.errors import UsageError

        raise UsageError(f"{name} does not exist", "")


def examine(data: bytes) -> str:
    """Reads, judges and reports; the outcome in a word."""
    from bncheck.checkpoints import read_checkpoint
    from bncheck.errors import BncheckError
    from bncheck.findings.report import Run
    from bncheck.findings.rule import Severity
    from bncheck.judgement.diagnosis import diagnose
    from bncheck.reports import Format, write
    from bncheck.reports.style import Style
    from bncheck.rules import RULES

    try:
        report = diagnose(read_checkpoint(MemorySource(data)), Severity.ERROR, RULES)  # type: ignore[arg-type]
    except BncheckError as error:
        if not error.message or "\n" in error.message:
            raise ValueError("an error is one sentence") from error
        return type(error).__name__
    run = Run("inspect", (report,), 0)
    for format_ in Format:
        write(format_, run, io.StringIO(), Style(width=80))
    return "read" if report.layers else "read, no layers"


def mutate(data: bytes, choose: random.Random) -> bytes:
    """A few small changes."""
    changed = bytearray(data)
    for _ in range(choose.choice([1, 1, 1, 2, 4, 8])):
        place = choose.randrange(len(changed) + 1)
        match choose.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << choose.randrange(8)
            case 1 if place < len(changed):
                changed[place] = choose.randrange(256)
            case 2:
                changed[place:place] = choose.choice(TOKENS)
            case 3:
                del changed[place : place + choose.choice([1, 2, 4, 16, 200])]
            case 4:
                token = choose.choice(TOKENS)
                changed[place : place + len(token)] = token
            case 5:
                start = choose.randrange(len(changed) + 1)
                changed[place:place] = changed[start : start + choose.randrange(1, 64)]
            case _:
                number = choose.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, choose.randrange(2**16)])
                size = choose.choice([2, 4, 8])
                changed[place : place + size] = struct.pack("<Q", number)[:size]
    return bytes(changed[: choose.randrange(len(changed) + 1)] if choose.random() < 0.03 else changed)


def mutate_inside(data: bytes, choose: random.Random) -> bytes:
    """An archive with one entry changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    interesting = [name for name in entries if name.endswith((".pkl", ".json", ".py"))] * 4 + list(entries)
    name = choose.choice(interesting)
    entries[name] = mutate(entries[name], choose)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", choose.choice([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED])) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return out.getvalue()


def too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def work(task: tuple[int, int, dict[str, bytes]]) -> tuple[Counter[str], list[str], float, float]:
    """Runs a share of the inputs: outcomes, crashes, the longest time, and the peak memory in MiB."""
    count, seed, files = task
    choose = random.Random(seed)
    outcomes: Counter[str] = Counter()
    crashes = []
    longest = 0.0
    names = list(files)
    change: dict[str, Callable[[bytes, random.Random], bytes]] = {}
    for name, data in files.items():
        change[name] = mutate_inside if data.startswith(b"PK") else mutate
    signal.signal(signal.SIGALRM, too_slow)
    for index in range(count):
        name = names[index % len(names)]
        data = (mutate if choose.random() < 0.25 else change[name])(files[name], choose)
        started = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            outcomes[f"{name}: {examine(data)}"] += 1
        except Exception:  # noqa: BLE001 - whatever it is, it is a crash
            digest = hashlib.sha256(data).hexdigest()[:12]
            CRASHES.mkdir(exist_ok=True)
            (CRASHES / digest).write_bytes(data)
            crashes.append(f"{name} {digest}\n{traceback.format_exc(limit=-4)}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        longest = max(longest, time.perf_counter() - started)
    return outcomes, crashes, longest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_seeds(queue: Any) -> None:
    queue.put(seeds())


def main() -> int:
    """Prints what came out; exits with 1 after a crash."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    maker = context.Process(target=make_seeds, args=(queue,))  # so that the readers run without torch
    maker.start()
    files = queue.get()
    maker.join()
    started = time.perf_counter()
    tasks = [(options.count // options.jobs, options.seed * 1000 + job, files) for job in range(options.jobs)]
    with context.Pool(options.jobs) as pool:
        results = pool.map(work, tasks)
    outcomes: Counter[str] = sum((result[0] for result in results), Counter())
    crashes = [crash for result in results for crash in result[1]]
    for outcome, number in sorted(outcomes.items()):
        print(f"{number:9,}  {outcome}")
    seconds = time.perf_counter() - started
    print(
        f"{sum(outcomes.values()) + len(crashes):,} inputs in {seconds:.0f} s, {len(crashes)} crashes, "
        f"longest {max(result[2] for result in results):.2f} s, peak {max(result[3] for result in results):.0f} MiB"
    )
    seen: set[str] = set()
    for crash in crashes:
        where = crash.partition("\n")[2]
        if where not in seen and len(seen) < 10:
            seen.add(where)
            print(crash, file=sys.stderr)
    return 1 if crashes or max(result[3] for result in results) > MAX_MIB else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
