"""What files of checksums say, in the forms that they have."""

import pytest

from libs.checksums import BYTES_MAX, sums_of

SUM = "00" * 31 + "aB"


@pytest.mark.parametrize(
    "line", [f"{SUM}  x.zip", f"{SUM} *x.zip\r", f"  {SUM}  ./a/x.zip", f"# of today\n{SUM}  x.zip"]
)
def test_a_sum_is_known_by_the_name_of_its_file(line):
    assert sums_of(f"{line}\n".encode()) == {"x.zip": bytes(31) + b"\xab"}


@pytest.mark.parametrize(
    "content", [b"", SUM.encode(), f"{SUM[1:]}  x.zip".encode(), b"\xff" * 80, b"MD5 (x.zip) = 00"]
)
def test_another_line_says_nothing(content):
    assert sums_of(content) == {}


def test_no_more_is_read_than_such_a_file_has():
    assert sums_of(b"\n" * BYTES_MAX + f"{SUM}  x.zip".encode()) == {}
