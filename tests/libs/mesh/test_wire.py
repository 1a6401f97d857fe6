"""Times and decimals on the wire, against protobuf's own."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from libs.mesh.wire import time_from_proto, timestamp

zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=11))])
# As far from the ends of the calendar as a zone may be from UTC.
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=zones)  # noqa: DTZ001 (hypothesis adds the zone)


@given(times)
def test_a_time_is_what_protobuf_makes_of_it_and_comes_back(time):
    expected = Timestamp()
    expected.FromDatetime(time)
    assert timestamp(time) == expected
    assert time_from_proto(expected) == time


def test_a_time_without_a_zone_is_a_defect_and_none_stays_unset():
    with pytest.raises(TypeError):
        timestamp(datetime(2026, 3, 2))  # noqa: DTZ001 (that is the point)
    assert timestamp(None) is None
