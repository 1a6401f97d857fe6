"""How far an import is, in lines: said when something else is done, and otherwise seldom."""

from io import StringIO

from rich.console import Console

from libs.cli.import_command import TELL_SECONDS, Lines


def test_a_line_is_told_when_something_else_is_done_and_else_after_a_while():
    told, now = StringIO(), [100.0]
    lines = Lines(Console(file=told, soft_wrap=True), lambda: now[0])
    for doing, far, later in (
        ("x[1].csv: sending", " 1 %", 0.0),
        ("x[1].csv: sending", " 2 %", 0.0),
        ("x[1].csv: sending", " 3 %", TELL_SECONDS - 1),
        ("x[1].csv: sending", " 4 %", 1.0),
        ("x[1].csv: sending", " 5 %", TELL_SECONDS - 1),
        ("x[1].csv: checking", "", 0.0),
        ("x[1].csv: checking", " 9 rows", TELL_SECONDS - 1),
        ("x[1].csv: checking", " 10 rows", 1.0),
    ):
        now[0] += later
        lines.tell(doing, far)
    assert told.getvalue().splitlines() == [
        "x[1].csv: sending 1 %",
        "x[1].csv: sending 4 %",
        "x[1].csv: checking",
        "x[1].csv: checking 10 rows",
    ]
