"""The command as a user meets it: exit codes, streams, options, bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inline_snapshot import snapshot
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from bncheck.cli import app
from bncheck.version import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bncheck(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command in this process, 80 columns wide."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, so that reports show short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network() -> nn.Sequential:
    """Trained on one batch of easy numbers, again and again, so that the report is the same on every machine."""
    made = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        made[0].weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
        for _ in range(200):
            made(torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(4, 1, 1, 1))
    return made


def documents(result: Result) -> Any:
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_text_report(here: Path, bncheck: Callable[..., Result]) -> None:
    torch.save(network().eval(), "model.pt")
    result = bncheck("inspect", "model.pt")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == snapshot(
        """\
PASSED model.pt
  torch.save · 1 BatchNorm2d layer · no findings

  kind                  BatchNorm2d (stored)
  affine                True (stored)
  track_running_stats   True (stored)
  momentum              0.1 (stored)
  eps                   1e-05 (stored)
  mode                  eval (stored)
  num_batches_tracked   200
  dtype of statistics   float32
  as saved              normalises with its running statistics

  layer  channels    running_mean         running_var
  1             2  1.5 … 2.25 … 3  1.67 … 4.17 … 6.67  █      █
  (min … median … max over the channels; bars: channels by running_var)
"""
    )


def test_the_json_report(here: Path, bncheck: Callable[..., Result]) -> None:
    torch.save({"state_dict": network().state_dict(), "epoch": 1}, "model.pt")
    result = bncheck("inspect", "model.pt", "--format", "json")
    document = documents(result)
    [report] = document["reports"]
    assert (document["version"], document["tool"]) == (1, {"name": "bncheck", "version": __version__})
    assert (document["command"], document["exit_code"], result.exit_code) == ("inspect", 0, 0)
    assert {key: report[key] for key in ("subjects", "format", "error", "verdict", "findings", "measurements")} == {
        "subjects": ["model.pt"],
        "format": "torch.save",
        "error": None,
        "verdict": "passed",
        "findings": [],
        "measurements": {},
    }
    assert report["undecided"][0] == {
        "rule": "saved-in-train-mode",
        "layer": "1",
        "group": "state_dict",
        "reason": "the file does not hold the mode",
    }
    [layer] = report["layers"]
    unknown = {"value": None, "known": "unknown"}
    assert {key: layer[key] for key in ("name", "group", "kind", "num_features", "dtype", "num_batches_tracked")} == {
        "name": "1",
        "group": "state_dict",
        "kind": {"value": "BatchNorm2d", "known": "inferred"},
        "num_features": 2,
        "dtype": "float32",
        "num_batches_tracked": 200,
    }
    assert (layer["eps"], layer["momentum"], layer["training"]) == (unknown, unknown, unknown)
    assert layer["affine"] == layer["track_running_stats"] == {"value": True, "known": "inferred"}
    assert layer["behaviour"] == {"normalises_with": "unknown", "updates_statistics": None}
    bn = network()[1]
    assert layer["running_mean"]["min"] == bn.running_mean.min().item()
    assert layer["running_var"]["max"] == bn.running_var.max().item()
    assert layer["running_var"]["median"] == bn.running_var.double().mean().item()  # of two


def test_momentum_none_is_stored_and_not_unknown(here: Path, bncheck: Callable[..., Result]) -> None:
    torch.save(nn.BatchNorm2d(2, momentum=None), "model.pt")
    [layer] = documents(bncheck("inspect", "model.pt", "-f", "json"))["reports"][0]["layers"]
    assert layer["momentum"] == {"value": None, "known": "stored"}


def test_numbers_that_json_lacks_are_strings(here: Path, bncheck: Callable[..., Result]) -> None:
    statistics = {
        "bn.running_mean": torch.tensor([float("-inf"), 0.0, 1.0]),
        "bn.running_var": torch.full((3,), float("nan")),
    }
    torch.save(statistics, "model.pt")
    result = bncheck("inspect", "model.pt", "-f", "json")
    [report] = documents(result)["reports"]
    assert report["layers"][0]["running_mean"]["min"] == "-inf"
    assert report["layers"][0]["running_var"]["median"] == "nan"
    assert (report["verdict"], result.exit_code) == ("failed", 1)


def test_the_same_input_gives_the_same_bytes(here: Path, bncheck: Callable[..., Result]) -> None:
    torch.save({"a": network(), "b": network().state_dict()}, "model.pt")
    first, second = (bncheck("inspect", "model.pt", "-f", "json").stdout_bytes for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("fail_on", "code"), [("error", 0), ("warning", 1), ("note", 1), ("never", 0)])
def test_fail_on_decides_the_exit_code(here: Path, bncheck: Callable[..., Result], fail_on: str, code: int) -> None:
    torch.save(network(), "model.pt")  # in train mode: a warning
    assert bncheck("inspect", "model.pt", "--fail-on", fail_on).exit_code == code


def make_inputs() -> None:
    torch.save(network().eval(), "good.pt")
    torch.save(nn.BatchNorm2d(2), "fresh.pt")
    torch.save({"conv.weight": torch.zeros(2, 2)}, "plain.pt")
    Path("broken.pt").write_bytes(Path("good.pt").read_bytes()[:-100])


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        (["good.pt"], 0),
        (["good.pt", "plain.pt"], 0),
        (["plain.pt"], 3),
        (["fresh.pt", "plain.pt"], 1),
        (["fresh.pt", "good.pt"], 1),
        (["good.pt", "broken.pt"], 2),
        (["fresh.pt", "broken.pt", "plain.pt"], 2),
        (["nothing.pt"], 2),
        (["good.pt", "nothing.pt"], 2),
    ],
)
def test_exit_codes_of_several_inputs(here: Path, bncheck: Callable[..., Result], inputs: list[str], code: int) -> None:
    make_inputs()
    result = bncheck("inspect", *inputs, "-f", "json")
    assert result.exit_code == code
    assert [report["subjects"] for report in documents(result)["reports"]] == [[name] for name in inputs]


def test_a_file_without_batchnorm_is_said_plainly(here: Path, bncheck: Callable[..., Result]) -> None:
    make_inputs()
    result = bncheck("inspect", "plain.pt")
    assert result.stdout == snapshot(
        """\
UNDECIDED plain.pt
  torch.save · no BatchNorm layer
"""
    )


def test_a_bad_file_is_reported_at_its_place(here: Path, bncheck: Callable[..., Result]) -> None:
    make_inputs()
    result = bncheck("inspect", "good.pt", "broken.pt", "nothing.pt", "-q")
    assert result.stdout == snapshot(
        """\
PASSED good.pt: no findings
ERROR broken.pt is a zip file without its end
ERROR nothing.pt does not exist
3 inputs: 1 passed, 2 not read
"""
    )


def test_folders_are_searched_by_content(here: Path, bncheck: Callable[..., Result]) -> None:
    for folder in ("runs/a", "runs/b", "runs/.hidden", "runs/__pycache__"):
        Path(folder).mkdir(parents=True)
    torch.save(network().eval(), "runs/a/weights.bin")
    torch.save(network().eval(), "runs/.hidden/old.pt")
    save_file(network().state_dict(), "runs/b/no_suffix")
    Path("runs/b/log.txt").write_text("epoch 1")
    Path("runs/b/empty.pt").write_bytes(b"")
    result = bncheck("inspect", "runs", "runs/a/weights.bin", "-f", "json")
    assert [(r["subjects"][0], r["format"]) for r in documents(result)["reports"]] == [
        ("runs/a/weights.bin", "torch.save"),
        ("runs/b/empty.pt", None),
        ("runs/b/no_suffix", "safetensors"),
    ]
    assert result.exit_code == 2, "an empty checkpoint is not passed over"


def test_patterns_that_the_shell_left_are_expanded(here: Path, bncheck: Callable[..., Result]) -> None:
    make_inputs()
    result = bncheck("inspect", "g*.pt", "-f", "json")
    assert [report["subjects"] for report in documents(result)["reports"]] == [["good.pt"]]
    assert bncheck("inspect", "z*.pt").exit_code == 2


def test_a_folder_without_checkpoints_is_an_error(here: Path, bncheck: Callable[..., Result]) -> None:
    Path("docs").mkdir()
    Path("docs/readme.md").write_text("hello")
    result = bncheck("inspect", "docs")
    assert result.exit_code == 2
    assert "docs holds no checkpoint" in result.stdout


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["a.0", "a.1", "0", "1"]),
        (["--group", "b"], ["0", "1"]),
        (["--kind", "BatchNorm1d"], ["a.1", "1"]),
        (["--layer", "a.*"], ["a.0", "a.1"]),
        (["--layer", "0", "--layer", "a.1"], ["a.1", "0"]),
        (["--layer", "nothing"], []),
    ],
)
def test_layers_can_be_selected(
    here: Path, bncheck: Callable[..., Result], options: list[str], names: list[str]
) -> None:
    part = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(3))
    torch.save({"m": nn.ModuleDict({"a": part}), "b": part}, "model.pt")
    result = bncheck("inspect", "model.pt", "-f", "json", *options)
    [report] = documents(result)["reports"]
    assert [layer["name"] for layer in report["layers"]] == names
    assert result.exit_code == (1 if names else 3)


def test_a_report_may_go_to_the_terminal_and_to_files(here: Path, bncheck: Callable[..., Result]) -> None:
    torch.save(network().eval(), "model.pt")
    result = bncheck("inspect", "model.pt", "--format", "text", "--output", "json=bn.json", "--output", "text=bn.txt")
    assert result.stdout.startswith("PASSED model.pt")
    assert json.loads(Path("bn.json").read_text())["exit_code"] == 0
    assert Path("bn.txt").read_text() == result.stdout
    alone = bncheck("inspect", "model.pt", "-f", "json", "-o", "alone.json")
    assert alone.stdout == ""
    assert Path("alone.json").read_text() == Path("bn.json").read_text()
    by_suffix = bncheck("inspect", "model.pt", "-o", "suffix.json")
    assert by_suffix.stdout.startswith("PASSED")
    assert Path("suffix.json").read_text() == Path("bn.json").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["-f", "text", "-f", "json"],
        ["-o", "report"],
        ["-o", "jsn=report"],
        ["-o", "json=no/such/folder/report.json"],
        ["-f", "xml"],
        ["--fail-on", "sometimes"],
        ["--width", "3"],
        ["--model-arg", "a=1"],
        ["--no-such-option"],
    ],
)
def test_wrong_options_exit_with_2(here: Path, bncheck: Callable[..., Result], options: list[str]) -> None:
    torch.save(network().eval(), "model.pt")
    result = bncheck("inspect", "model.pt", *options)
    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_names_cannot_write_to_the_terminal(here: Path, bncheck: Callable[..., Result]) -> None:
    names = ["\x1b[31mred", "[bold]x[/bold]", "new\nline", "\u202eright", "\ud800lone", "größe.层"]
    state = {f"{name}.{part}": value for name in names for part, value in nn.BatchNorm2d(2).state_dict().items()}
    torch.save(state, "model.pt", pickle_protocol=2)
    text = bncheck("inspect", "model.pt", "-v").stdout
    assert "\x1b" not in text
    assert "\u202e" not in text
    for shown in ("\\x1b[31mred", "[bold]x[/bold]", "new\\nline", "\\u202eright", "\\ud800lone", "größe.层"):
        assert shown in text
    layers = documents(bncheck("inspect", "model.pt", "-f", "json"))["reports"][0]["layers"]
    spelled = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    assert [layer["name"] for layer in layers] == spelled


@pytest.mark.parametrize("layers", [3, 100])
def test_the_report_fits_80_columns(here: Path, bncheck: Callable[..., Result], layers: int) -> None:
    blocks = nn.ModuleDict(
        {
            f"a_rather_long_name_for_block_{i}": nn.ModuleDict({"normalisation_layer": nn.BatchNorm2d(4)})
            for i in range(layers)
        }
    )
    torch.save(blocks, "model.pt")
    lines = bncheck("inspect", "model.pt").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]
    assert len(lines) < 60
    assert len(bncheck("inspect", "model.pt", "-v").stdout.splitlines()) > layers


def test_rules_and_parameters_are_explained(bncheck: Callable[..., Result]) -> None:
    listed = bncheck("rules")
    assert "negative-variance" in listed.stdout
    assert bncheck("rules", "-f", "json").exit_code == 0
    for name in ("negative-variance", "momentum", "eps", "affine", "track_running_stats", "training", "num_features",
                 "running_mean", "num_batches_tracked"):  # fmt: skip
        assert bncheck("explain", name).stdout.startswith(name)
    wrong = bncheck("explain", "negative-varianz")
    assert wrong.exit_code == 2
    assert "Did you mean negative-variance?" in wrong.stderr


def test_version_and_help(bncheck: Callable[..., Result]) -> None:
    assert bncheck("--version").stdout == f"bncheck {__version__}\n"
    assert bncheck("--help").exit_code == 0
    assert "--fail-on" in bncheck("inspect", "--help").stdout


NET = """
from torch import nn
print("a module that prints")
class Net(nn.Module):
    def __init__(self, classes=2, fail=False, reads=False):
        super().__init__()
        assert not fail, "it was told to"
        tracked = nn.BatchNorm2d(2, eps=1e-3, momentum=0.03)
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), tracked, nn.BatchNorm2d(2, track_running_stats=False))
        self.head = nn.BatchNorm2d(classes)
        if reads:
            float(self.head.weight.sum())
def other(): return 3
"""


@pytest.fixture
def with_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.py and the state_dict of its network, trained for one batch, below `model.`, as Lightning saves it."""
    Path("net.py").write_text(NET)
    namespace: dict[str, Any] = {}
    exec(NET.replace("print", "str"), namespace)
    made = namespace["Net"]()
    made.body(torch.randn(4, 1, 3, 3))
    made.head(torch.randn(4, 2, 3, 3))
    torch.save({f"model.{key}": value for key, value in made.state_dict().items()}, "model.pt")
    for name in list(sys.modules):
        if name == "net":
            monkeypatch.delitem(sys.modules, name)
    return here


@pytest.mark.parametrize("spec", ["net:Net", "net.py:Net"])
def test_the_architecture_supplies_what_a_state_dict_lacks(
    with_network: Path, bncheck: Callable[..., Result], spec: str
) -> None:
    result = bncheck("inspect", "model.pt", "--model", spec, "-f", "json")
    [report] = documents(result)["reports"]
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["model.body.1"]["eps"] == {"value": 1e-3, "known": "architecture"}
    assert layers["model.body.1"]["momentum"] == {"value": 0.03, "known": "architecture"}
    assert layers["model.body.1"]["kind"] == {"value": "BatchNorm2d", "known": "architecture"}
    assert layers["model.body.1"]["training"] == {"value": None, "known": "unknown"}
    assert report["notes"] == ["layers of the architecture were found below 'model.'"]
    found = {(finding["rule"], finding["severity"], finding["layer"]) for finding in report["findings"]}
    assert ("no-running-statistics", "warning", "model.body.2") in found  # the file does not show it
    assert ("architecture-mismatch", "warning", None) in found  # below 'model.'


def test_layers_that_one_side_lacks_are_named(with_network: Path, bncheck: Callable[..., Result]) -> None:
    state = torch.load("model.pt")
    renamed = {key.replace("head", "neck"): value for key, value in state.items()}
    torch.save(renamed, "renamed.pt")
    result = bncheck("inspect", "renamed.pt", "--model", "net:Net", "-f", "json")
    [report] = documents(result)["reports"]
    assert report["notes"] == ["layers of the architecture were found below 'model.'"]
    [message] = [found["message"] for found in report["findings"] if found["rule"] == "architecture-mismatch"]
    assert message == (
        "it does not fit the architecture (below 'model.'): missing in the file: 1 BatchNorm layer (head); unknown to "
        "the architecture: 1 BatchNorm layer (model.neck)"
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model", "net:Nothing"], "cannot be loaded"),
        (["--model", "no_such_module:Net"], "cannot be loaded"),
        (["--model", "nothing.py:Net"], "cannot be loaded"),
        (["--model", "net"], "does not name a callable"),
        (["--model", "net:Net", "--model-arg", "fail=True"], "it was told to"),
        (["--model", "net:Net", "--model-arg", "fail"], "not of the form"),
        (["--model", "net:other"], "not a torch.nn.Module"),
    ],
)
def test_an_architecture_that_fails_is_one_sentence(
    with_network: Path, bncheck: Callable[..., Result], options: list[str], complaint: str
) -> None:
    result = bncheck("inspect", "model.pt", *options)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_constructor_that_needs_numbers_is_built_on_the_cpu(
    with_network: Path, bncheck: Callable[..., Result]
) -> None:
    result = bncheck("inspect", "model.pt", "--model", "net:Net", "--model-arg", "reads=True", "-f", "json")
    assert "was built on the CPU" in documents(result)["reports"][0]["notes"][0]


# -- in a process of its own


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bncheck", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_torch_is_not_imported_by_what_does_not_run_a_model(here: Path) -> None:
    torch.save(network(), "module.pt")
    torch.save(network().state_dict(), "state.pt")
    save_file(network().state_dict(), "model.safetensors")
    script = (
        "import sys, contextlib\n"
        "from bncheck.cli import app\n"
        "for arguments in (['inspect', '.', '-f', 'json'], ['rules'], ['explain', 'momentum'], ['--help']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        app(arguments)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"format": "safetensors"' in done.stdout


def test_a_reader_that_stops_reading_changes_nothing(here: Path) -> None:
    torch.save(nn.Sequential(*(nn.BatchNorm2d(2) for _ in range(300))), "model.pt")  # more than a pipe holds
    done = subprocess.run(
        f"{sys.executable} -m bncheck inspect model.pt -f json | head -c 10; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_named_pipe_is_refused_and_not_waited_for(here: Path) -> None:
    os.mkfifo("pipe.pt")
    done = run("inspect", "pipe.pt", timeout=20)
    assert (done.returncode, done.stdout) == (
        2,
        snapshot("""\
ERROR pipe.pt is not a regular file
  hint: Give the path of a checkpoint file.
"""),
    )


def test_no_input_is_changed(here: Path) -> None:
    torch.save(network(), "model.pt")
    before = (Path("model.pt").read_bytes(), Path("model.pt").stat().st_mtime_ns, sorted(os.listdir()))
    assert run("inspect", "model.pt").returncode == 0
    assert (Path("model.pt").read_bytes(), Path("model.pt").stat().st_mtime_ns, sorted(os.listdir())) == before


def test_a_crash_does_not_read_as_findings(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in place of numpy breaks the import: the exit code is 2, and the message says whose fault it is."""
    torch.save(network(), "model.pt")
    Path("broken").mkdir()
    Path("broken/numpy.py").write_text("raise RuntimeError('broken on purpose')")
    done = run("inspect", "model.pt", env={**os.environ, "PYTHONPATH": "broken"})
    assert done.returncode == 2
    assert "bncheck itself failed: RuntimeError: broken on purpose" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_ascii_terminal_gets_ascii(here: Path) -> None:
    torch.save(network(), "model.pt")
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = run("inspect", "model.pt", env=env)
    assert done.returncode == 0
    assert done.stdout.isascii()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_progress_is_shown_to_whoever_watches_and_to_nobody_else(here: Path) -> None:
    import pty

    torch.save(network().eval(), "0.pt")
    for index in range(1, 10):
        Path(f"{index}.pt").write_bytes(Path("0.pt").read_bytes())
    controller, terminal = pty.openpty()
    watched = subprocess.run(
        [sys.executable, "-m", "bncheck", "inspect", ".", "-q"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "CI"},  # whose logs nobody watches
    )
    os.close(terminal)
    shown = os.read(controller, 100_000)
    os.close(controller)
    assert b"checkpoints" in shown
    assert watched.stdout.decode().count("PASSED") == 10
    unwatched = run("inspect", ".", "-q")
    assert (unwatched.returncode, unwatched.stderr) == (0, "")
    assert unwatched.stdout == watched.stdout.decode()


def test_a_defect_of_ours_on_one_file_does_not_lose_the_others(
    here: Path, bncheck: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only way to meet one is to make one: a rule that fails for the second file."""
    from bncheck.commands import inspect
    from bncheck.findings.rule import Rule, Severity

    def fail(layer: Any) -> Any:
        if layer.num_features == 3:
            raise RuntimeError("broken on purpose")
        return ()

    for channels in (2, 3, 4):
        torch.save(nn.BatchNorm2d(channels), f"{channels}.pt")
    broken = Rule("broken", Severity.ERROR, "", "Broken.", layer=fail)
    monkeypatch.setattr(inspect, "INSPECT_RULES", (broken,))
    result = bncheck("inspect", "2.pt", "3.pt", "4.pt", "-f", "json")
    errors = [report["error"] and report["error"]["message"] for report in documents(result)["reports"]]
    assert errors == [None, "bncheck itself failed on 3.pt: RuntimeError('broken on purpose')", None]
    assert result.exit_code == 2
