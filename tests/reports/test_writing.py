"""What writing a report loads: only the report for people needs rich."""

import subprocess
import sys
from pathlib import Path

import pytest

from bncheck.reports import Format

SAMPLE = Path(__file__).parent.parent.parent / "sample_checkpoints" / "dead-channels.pt"
CODE = """
import io, sys
from pathlib import Path
from bncheck.commands.inspect import run
from bncheck.reports import Format, write
from bncheck.reports.style import Style

written = run({{"paths": [{path!r}]}})
out = io.StringIO()
write(Format.{name}, written, out, Style(width=80))
assert "dead-channels" in out.getvalue()
print("rich" in sys.modules)
"""


@pytest.mark.parametrize("format_", Format, ids=lambda format_: format_.value)
def test_only_the_text_report_loads_rich(format_: Format) -> None:
    code = CODE.format(path=str(SAMPLE), name=format_.name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{format_ is Format.TEXT}\n"
