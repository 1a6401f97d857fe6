"""Times and decimals on the wire, against protobuf's own."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import BytesValue, UInt64Value
from hypothesis import given
from hypothesis import strategies as st

from libs.mesh.wire import embedded, time_from_proto, timestamp, varint

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


@given(st.integers(1, 2**63 - 1))
def test_a_whole_number_is_written_as_protobuf_writes_it(value):
    written = varint(1 << 3) + varint(value)
    assert UInt64Value.FromString(written).value == value
    assert written == UInt64Value(value=value).SerializeToString()


# Without those that are protobuf's own.
@given(st.one_of(st.integers(1, 18_999), st.integers(20_000, 2**29 - 1)), st.binary(max_size=300))
def test_what_is_embedded_is_read_as_if_it_had_been_written_there(number, text):
    inner = BytesValue(value=text).SerializeToString()
    field = FieldDescriptorProto(
        name="held", number=number, type="TYPE_MESSAGE", type_name=".google.protobuf.BytesValue"
    )
    field.label = FieldDescriptorProto.LABEL_OPTIONAL
    pool = DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = FileDescriptorProto(name="held.proto", dependency=[wrappers_pb2.DESCRIPTOR.name], syntax="proto3")
    file.message_type.add(name="Holder").field.append(field)
    pool.Add(file)
    holder = GetMessageClass(pool.FindMessageTypeByName("Holder"))
    message = holder.FromString(embedded(number, inner))
    assert message.held.value == text
    assert message.SerializeToString() == embedded(number, inner)
