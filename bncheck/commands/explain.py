"""`bncheck explain`: what a rule or a parameter of BatchNorm is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.commands.progress import SILENT
from bncheck.errors import UsageError
from bncheck.findings.rule import Explanation
from bncheck.glossary import GLOSSARY
from bncheck.options.configuring import ExplainOptions
from bncheck.options.option import make
from bncheck.rules import RULES
from bncheck.wording import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bncheck.commands.progress import Progress

OPTIONS = (ExplainOptions,)
EXAMPLES = ("bncheck explain non-finite-statistics", "bncheck explain momentum")


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> Explanation:
    """The explanation of a rule or a parameter.

    Raises:
        UsageError: there is none of that name.
    """
    name = make(ExplainOptions, said).name
    explanations = {rule.id: Explanation(rule.id, rule.severity, rule.explanation) for rule in RULES}
    explanations |= {parameter: Explanation(parameter, None, text) for parameter, text in GLOSSARY.items()}
    if name not in explanations:
        hint = nearest(name, explanations, ", ".join(sorted(explanations)))
        raise UsageError(f"there is no rule or parameter {name!r}", hint)
    return explanations[name]
