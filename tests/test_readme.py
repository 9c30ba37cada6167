"""The README tells the truth: its outputs, its tables, its commands and options."""

import re

import typer.main

from bncheck.cli import app
from tools.readme import README, ROOT, render

PAGE = README.read_text(encoding="utf-8")


def test_outputs_and_tables_are_what_the_program_says_now() -> None:
    assert render(PAGE) == PAGE, "run `make readme`"


def test_every_make_target_in_the_text_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z]+)", PAGE))
    assert {"demo", "test", "bench", "readme"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_command_and_option_is_described() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"bncheck {name}" in PAGE
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert {option for option in options if option not in PAGE} == set()


def test_every_file_of_the_layout_exists() -> None:
    [layout] = re.findall(r"```\n(bncheck/\n.*?)```", PAGE, re.DOTALL)
    names = re.findall(r"[a-z_]+\.py", layout)
    assert len(names) > 10
    for name in names:
        assert list((ROOT / "bncheck").rglob(name)) or list(ROOT.glob(f"*/{name}")), name
