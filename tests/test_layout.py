"""The shape of the source: who may know whom, what each rule and format must have."""

import ast
import re
from pathlib import Path

import pytest

import bncheck
from bncheck import rules
from bncheck.checkpoints.formats import FORMATS
from bncheck.checkpoints.formats import readers as checkpoint_readers
from bncheck.glossary import GLOSSARY
from bncheck.reports import Format
from bncheck.rules import CATALOGUE, RULES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bncheck"

# What is examined: of a file, of two, of a model that ran.
RECORDS = {"subjects", "comparisons", "evaluations"}
# What each part may import of bncheck. Arrows that are not here do not exist.
MAY_KNOW: dict[str, set[str]] = {
    "errors": set(),
    "subjects": set(),
    "wording": set(),
    "glossary": set(),
    "comparisons": {"subjects"},
    "evaluations": {"comparisons", "subjects"},
    "findings": {*RECORDS, "reports"},  # a report shows itself in a terminal and in a notebook
    "matching": {*RECORDS},
    "rules": {*RECORDS, "findings", "wording", "matching", "rules"},
    "checkpoints": {"subjects", "errors", "wording", "checkpoints"},
    "pairing": {*RECORDS, "errors", "matching", "wording"},
    "measurements": {*RECORDS, "wording"},
    "evaluation": {*RECORDS, "errors", "wording", "matching", "checkpoints", "evaluation"},
    "config": {"errors", "wording"},
    "policy": {"config", "errors", "findings", "wording"},
    "verdicts": {"findings", "policy"},
    "selection": {*RECORDS, "findings", "errors", "wording"},
    "diagnosis": {*RECORDS, "findings", "verdicts", "errors", "measurements", "pairing"},
    "inspection": {*RECORDS, "checkpoints", "diagnosis", "errors", "selection", "findings", "subjects", "rules"},
    "comparing": {*RECORDS,
        "checkpoints", "diagnosis", "errors", "inspection", "pairing", "selection", "findings", "subjects", "rules",
        "wording",
    },
    "gating": {*RECORDS,
        "comparing", "config", "diagnosis", "errors", "evaluation", "findings", "inspection", "rules", "selection",
    },
    "repair": {*RECORDS,
        "checkpoints", "diagnosis", "errors", "evaluation", "findings", "matching", "measurements", "rules",
        "selection", "subjects", "verdicts", "wording",
    },
    "reports": {*RECORDS, "findings", "subjects", "wording", "reports", "errors", "rules", "glossary"},
    "options": {"reports"},
    "cli": {
        "api", "checkpoints", "comparing", "config", "diagnosis", "errors", "evaluation", "findings", "gating",
        "inspection", "options", "policy", "repair", "reports", "rules", "selection", "verdicts", "wording",
    },
    "api": {*RECORDS,
        "checkpoints", "comparing", "config", "diagnosis", "errors", "evaluation", "findings", "gating", "policy",
        "repair", "rules", "selection", "subjects", "verdicts",
    },
    "drift_guard": {"errors", "wording", "evaluation"},
    "pytest_plugin": {"drift_guard"},
    "__main__": {"cli"},
    "__init__": {"errors", "api", "drift_guard"},
}  # fmt: skip
# Only these may import it, and nothing that a static command imports does.
TORCH = {"evaluation", "api", "drift_guard", "pytest_plugin"}  # the last three for their types alone
BANNED_NAMES = {"utils", "helpers", "common", "core", "base", "manager"}
PUBLIC = set(bncheck.__all__)
HEADINGS = ["What it checks", "Why it matters", "When it is wrong", "What to do", "Seen in"]


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_knows_only_what_it_may(path: Path) -> None:
    part = part_of(path)
    known = {name.split(".")[1] for name in imports_of(path) if name.startswith("bncheck.")} - {"__version__", *PUBLIC}
    assert known <= MAY_KNOW[part]
    if part not in TORCH:
        assert not any(name.split(".")[0] in ("torch", "torchvision") for name in imports_of(path))


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
    assert sorted(rule.id for rule in RULES) == sorted(files)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_has_an_explanation_a_test_and_a_kebab_name(rule) -> None:  # type: ignore[no-untyped-def]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.id)
    assert re.findall(r"^## (.*)$", rule.explanation, re.MULTILINE) == HEADINGS
    assert re.search(r"[.]$", rule.summary), "the first line is a sentence"
    assert (ROOT / "tests" / "rules" / f"test_{rule.id.replace('-', '_')}.py").exists()
    assert any([rule.layer, rule.checkpoint, rule.pair, rule.evaluation])
    assert set(rule.supersedes) <= {other.id for other in RULES}


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
    """A format is a file that writes a run; the others hold what several of them say."""
    files = {path.stem for path in (PACKAGE / "reports").glob("*.py") if "\ndef write(run: Run" in path.read_text()}
    assert {format_.value for format_ in Format} == files
    assert files <= {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "reports").glob("test_*.py")}


def test_every_parameter_of_a_batchnorm_is_explained() -> None:
    for text in GLOSSARY.values():
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Meaning", "Formula", "The usual error"]
