"""The shape of the source: who may know whom, what each rule and format must have."""

import ast
import re
from pathlib import Path

import pytest

import bncheck
from bncheck import rules
from bncheck.checkpoints.formats import FORMATS
from bncheck.checkpoints.formats import readers as checkpoint_readers
from bncheck.commands import COMMANDS
from bncheck.glossary import GLOSSARY
from bncheck.reports import Format
from bncheck.rules import CATALOGUE, RULES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bncheck"

# The rooms from the ground to the roof, and what each may import of bncheck. Arrows that are not here do not exist, so
# that none runs upwards: a room stands below all that know it.
MAY_KNOW: dict[str, set[str]] = {
    "errors": set(),
    "wording": set(),
    "version": set(),
    "glossary": set(),
    "subjects": set(),
    "findings": {"subjects", "wording"},
    "pairing": {"errors", "subjects", "wording"},
    "checkpoints": {"errors", "subjects", "wording"},
    "options": {"errors", "findings", "wording"},
    "rules": {"findings", "pairing", "subjects", "wording"},
    "reports": {"findings", "subjects", "version", "wording"},
    "judgement": {"errors", "findings", "options", "subjects", "wording"},
    "config": {"errors", "judgement", "options", "wording"},
    "evaluation": {"checkpoints", "errors", "options", "pairing", "subjects", "wording"},
    "commands": {
        "checkpoints", "config", "errors", "evaluation", "findings", "glossary", "judgement", "options", "pairing",
        "rules", "subjects", "wording",
    },
    "integrations": {"errors", "evaluation", "wording"},
    "cli": {"commands", "errors", "findings", "options", "reports", "version", "wording"},
    "api": {"commands", "errors", "findings", "options", "reports"},
    "__main__": {"cli"},
    "__init__": {"api", "errors", "integrations", "version"},
}  # fmt: skip
# The same inside the rooms that have rooms. What stands beside them is named by its file, `__init__` by that.
INSIDE: dict[str, dict[str, set[str]]] = {
    "checkpoints": {
        "sources": set(),
        "encodings": {"sources"},
        "contents": {"encodings"},
        "formats": {"contents", "encodings", "sources"},
        "search": {"formats", "sources"},
        "__init__": {"encodings", "formats", "sources"},
        "rewriting": {"__init__", "contents", "encodings", "formats", "sources"},
    },
    "evaluation": {
        "__init__": set(),
        "process": set(),
        "tensors": set(),
        "statistics": set(),
        "restoring": {"process", "tensors"},
        "models": {"statistics"},
        "data": {"models", "process"},
        "observing": {"data", "models", "process", "statistics", "tensors"},
        "probes": {"data", "models", "observing", "process", "restoring", "statistics"},
        "session": {"data", "models", "probes"},
    },
}
# Loose files at the top; everything else has a room.
MOST_LOOSE = 9
# Only these may import it, and nothing that a static command imports does.
TORCH = {"evaluation", "api", "commands", "integrations"}  # the last three for their types alone
# Libraries that one room alone may import.
ALONE = {"typer": "cli"}
BANNED_NAMES = {"utils", "helpers", "common", "core", "base", "manager"}
PUBLIC = set(bncheck.__all__)
HEADINGS = ["What it checks", "Why it matters", "When it is wrong", "What to do", "Seen in"]


def module_of(path: Path) -> str:
    """`bncheck.reports.json`; a package is called like its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str, depth: int = 1) -> str:
    """The room of a module, `depth` steps below the top: of `bncheck.reports.json` it is `reports`."""
    parts = module.split(".")
    return parts[depth] if len(parts) > depth else "__init__"


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, inside functions and for types too; a name stands for its module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            assert node.module
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in MODULES else node.module for name in names)
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_of(path): path for path in SOURCES}


@pytest.mark.parametrize("module", MODULES)
def test_a_file_knows_only_what_it_may(module: str) -> None:
    room = room_of(module)
    known = imports_of(MODULES[module])
    ours = {name for name in known if name.split(".")[0] == "bncheck"}
    beyond = {room_of(name) for name in ours} - {room} - MAY_KNOW[room]
    assert not beyond, f"{module} imports from {sorted(beyond)}, which MAY_KNOW of this test does not allow to {room}"
    if room in INSIDE:
        inner = room_of(module, 2)
        here = {room_of(name, 2) for name in ours if room_of(name) == room} - {inner}
        assert here <= INSIDE[room][inner], f"{module} imports from {sorted(here - INSIDE[room][inner])} of {room}"
    if room not in TORCH:
        assert not any(name.split(".")[0] in ("torch", "torchvision") for name in known)
    for library, its_room in ALONE.items():
        assert room == its_room or not any(name.split(".")[0] == library for name in known), f"{module}: {library}"


def test_the_arrows_lead_down_from_the_roof() -> None:
    """The tables are written from the ground up: a room knows only rooms that stand above its line."""
    for floors in (MAY_KNOW, *INSIDE.values()):
        below: set[str] = set()
        for room, known in floors.items():
            assert known <= below, f"{room} would import from {sorted(known - below)}, which stands above it"
            below.add(room)


def test_no_files_import_each_other_in_a_circle() -> None:
    """Neither whole nor in part: not for types, not inside functions, not over other files."""
    left = {module: imports_of(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    while free := [module for module, known in left.items() if not known & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"circle among {sorted(left)}"


def test_the_names_of_the_rooms_explain_the_program() -> None:
    loose = [path.name for path in PACKAGE.glob("*.py")]
    assert len(loose) <= MOST_LOOSE, f"{sorted(loose)}: a new file has its place in a room"
    assert {room_of(module) for module in MODULES} == MAY_KNOW.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_a_file_is_for(path: Path) -> None:
    assert path.stem not in BANNED_NAMES


def test_a_rule_imports_no_other_rule() -> None:
    for path in (PACKAGE / "rules").glob("*.py"):
        if path.stem != "__init__":
            assert not any(name.startswith("bncheck.rules") for name in imports_of(path)), path


def test_the_catalogue_names_every_rule_as_it_names_itself() -> None:
    for name, ids in CATALOGUE.items():
        assert tuple(rule.id for rule in getattr(rules, name)) == ids


def test_the_catalogue_holds_every_rule_file() -> None:
    files = {path.stem.replace("_", "-") for path in (PACKAGE / "rules").glob("*.py")} - {"--init--"}
    listed = {rule.id for rule in RULES}
    assert files <= listed, f"{sorted(files - listed)}: a line in CATALOGUE of bncheck/rules/__init__.py is missing"
    assert listed <= files, f"{sorted(listed - files)} of CATALOGUE has no file in bncheck/rules/"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_has_an_explanation_a_test_and_a_kebab_name(rule) -> None:  # type: ignore[no-untyped-def]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.id)
    assert re.findall(r"^## (.*)$", rule.explanation, re.MULTILINE) == HEADINGS
    assert re.search(r"[.]$", rule.summary), "the first line is a sentence"
    test = f"tests/rules/test_{rule.id.replace('-', '_')}.py"
    assert (ROOT / test).exists(), f"{rule.id} has no {test} with its tables of quiet and firing subjects"
    assert any([rule.layer, rule.checkpoint, rule.pair, rule.evaluation])
    assert set(rule.supersedes) <= {other.id for other in RULES}
    assert rule.headline or not (rule.evaluation or rule.pair), f"{rule.id} needs a headline, the first line of reports"


def test_every_format_of_checkpoints_is_registered_and_tested() -> None:
    """A reader is a file or folder of formats/ with `recognises`; a line in FORMATS and tests belong to it."""
    folder = PACKAGE / "checkpoints" / "formats"
    fronts = {path.stem: path for path in folder.glob("[!_]*.py")} | {
        path.parent.name: path for path in folder.glob("*/__init__.py")
    }
    readers = {name for name, path in fronts.items() if "\ndef recognises(" in path.read_text()}
    tests = {path.stem for path in (ROOT / "tests" / "checkpoints" / "formats").iterdir()}
    registry = "FORMATS of bncheck/checkpoints/formats/__init__.py"
    missing = [f"the reader {name} has no line in {registry}" for name in sorted(readers - set(FORMATS))]
    missing += [
        f"{registry} names {name}, and no such file beside it has `recognises`"
        for name in sorted(set(FORMATS) - readers)
    ]
    missing += [
        f"the reader {name} has no tests/checkpoints/formats/test_{name}.py"
        for name in sorted(readers)
        if f"test_{name}" not in tests
    ]
    assert not missing, "; ".join(missing)
    names = [reader.FORMAT for reader in checkpoint_readers()]
    assert len(set(names)) == len(names), f"two readers in bncheck/checkpoints/formats have one FORMAT: {names}"


def test_every_report_format_is_a_tested_file() -> None:
    """A format is a file or folder that writes a run; the others hold what several of them say."""
    writers = [path for path in (PACKAGE / "reports").rglob("*.py") if "\ndef write(run: Run" in path.read_text()]
    files = {path.stem if path.parent.name == "reports" else path.parent.name for path in writers}
    listed = {format_.value for format_ in Format}
    assert files == listed, (
        f"{sorted(files ^ listed)}: a file of reports/ and a member of reports.Format belong together"
    )
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "reports").glob("test_*.py")}
    assert files <= tested, f"{sorted(files - tested)} has no test in tests/reports/"


def test_every_command_is_a_file_and_a_line() -> None:
    files = {path.stem for path in (PACKAGE / "commands").glob("*.py") if "\nOPTIONS = " in path.read_text()}
    assert files == set(COMMANDS), f"{sorted(files ^ set(COMMANDS))}: a file of commands/ and a line in COMMANDS"


def test_every_parameter_of_a_batchnorm_is_explained() -> None:
    for text in GLOSSARY.values():
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Meaning", "Formula", "The usual error"]
