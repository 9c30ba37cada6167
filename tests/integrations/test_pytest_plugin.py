"""The pytest plugin in projects of other people: the fixture, and what it costs those who do not use it."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = "pytester"

# No random numbers: the error names the mean or the spread, whichever went further. Here the mean goes by
# 0.1 * 5 standard deviations, and the variance from 1 to 0.9 + 0.1 * 2.
MODEL = """
import pytest, torch
from torch import nn

@pytest.fixture
def model():
    return nn.Sequential(nn.Identity(), nn.BatchNorm1d(2))

def evaluate(model):
    with torch.inference_mode():
        return model(torch.tensor([[4.0, 4.0], [6.0, 6.0]]))
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project of tests, whose only plugin of ours is the one that is installed."""
    pytester.makepyfile(project=MODEL)
    pytester.syspathinsert()
    return pytester


def test_it_is_installed_under_its_name() -> None:
    [entry] = [entry for entry in entry_points(group="pytest11") if entry.name == "bncheck"]
    assert entry.value == "bncheck.integrations.pytest_plugin"


def test_a_block_in_train_mode_fails_the_test(project: pytest.Pytester) -> None:
    project.makepyfile("""
        from project import model, evaluate

        def test_train(model, bncheck_guard):
            with bncheck_guard(model):
                evaluate(model)

        def test_eval(model, bncheck_guard):
            with bncheck_guard(model.eval()):
                evaluate(model)

        def test_allowed(model, bncheck_guard):
            with bncheck_guard(model, allow=["1"]):
                evaluate(model)

        def test_function(model, bncheck_guard):
            bncheck_guard(model)(evaluate)(model)
    """)
    result = project.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines([
        "E *BatchNormDriftError: the statistics of 1 BatchNorm layer changed inside the guarded block: 1",
        "E *1 (train mode): running_mean and running_var moved in 1 update, the mean by up to 0.5 standard deviations",
        "E *Call model.eval() before the block*",
    ])  # fmt: skip
    assert "integrations/guard.py" not in result.stdout.str()  # the traceback ends in the user's own test


def test_what_is_watched_is_checked_at_the_end_of_the_test(project: pytest.Pytester) -> None:
    project.makepyfile("""
        from project import model, evaluate

        def test_train(model, bncheck_guard):
            bncheck_guard.watch(model)
            evaluate(model)

        def test_eval(model, bncheck_guard):
            bncheck_guard.watch(model.eval())
            evaluate(model)

        def test_before(model, bncheck_guard):
            evaluate(model)
            bncheck_guard.watch(model)

        def test_two(model, bncheck_guard):
            bncheck_guard.watch(model, allow="*")
            bncheck_guard.watch(model)
            evaluate(model)

        def test_at_once(model, bncheck_guard):
            watch = bncheck_guard.watch(model.eval())
            evaluate(model)
            watch.check()
    """)
    result = project.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_train*", "*ERROR at teardown of test_two*"])


def test_a_test_that_fails_tells_its_own_failure(project: pytest.Pytester) -> None:
    project.makepyfile("""
        from project import model, evaluate

        def test_own(model, bncheck_guard):
            with bncheck_guard(model):
                evaluate(model)
                assert 1 == 2
    """)
    result = project.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *assert 1 == 2", "E *the statistics of 1 BatchNorm layer changed *"])


def test_the_fixture_is_listed_with_what_it_does(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--fixtures", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["bncheck_guard -- *", "*Fails the test if statistics of BatchNorm layers move*"])


def run_alone(folder: Path, prelude: str, *arguments: str) -> str:
    """pytest in a process of its own, after some code; what is printed at the end."""
    code = f"import sys\n{prelude}\nimport pytest\ncode = pytest.main({[*arguments, '-p', 'no:cacheprovider']!r})\n"
    code += "print('code', int(code), sorted(name for name in sys.modules if name.split('.')[0] in "
    code += "('bncheck', 'torch', 'numpy', 'typer')))"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1]


def test_who_does_not_use_it_imports_a_few_small_files(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    loaded = [
        "bncheck",
        "bncheck.errors",
        "bncheck.integrations",
        "bncheck.integrations.pytest_plugin",
        "bncheck.version",
    ]
    assert run_alone(tmp_path, "", "-q") == f"code 0 {loaded}"


def test_without_torch_pytest_runs_and_the_fixture_says_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_unused(): pass\n"
        "def test_used(bncheck_guard):\n"
        "    with pytest.raises(Exception, match='guard takes a torch.nn.Module, not object'):\n"
        "        bncheck_guard.watch(object())\n"
    )
    prelude = "sys.modules['torch'] = sys.modules['numpy'] = None"
    assert run_alone(tmp_path, prelude, "-q").startswith("code 0 ")


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    assert run_alone(tmp_path, "", "-q", "-p", "no:bncheck") == "code 0 []"
