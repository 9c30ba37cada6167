import pytest

# The tables are compared there: a failure is to show both sides, as in a test file.
pytest.register_assert_rewrite("tests.rules.tables")
