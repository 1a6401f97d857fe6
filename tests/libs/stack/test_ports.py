import os
import socket

import pytest

from libs.stack.errors import StackError
from libs.stack.ports import HOST, Ports, any_free, is_free
from libs.stack.run import choose_ports, moved_ports, standard_ports


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_with_a_listener_is_not_free(taken):
    assert not is_free(taken)
    assert is_free(any_free())


def test_a_standard_port_that_is_taken_gives_way(taken):
    spare = any_free()
    assert Ports().take(taken, spare) == spare
    assert Ports().take(taken) not in (taken, 0)


def test_no_port_is_given_twice():
    ports = Ports()
    port = any_free()
    assert ports.take(port) == port
    assert ports.take(port) != port


def test_a_port_asked_for_by_number_is_refused_with_its_holder_and_the_flag(taken):
    with pytest.raises(StackError, match=rf"port {taken} is held by .*\(pid {os.getpid()}.*--port"):
        choose_ports(taken, None)


def test_a_port_asked_for_by_number_is_the_edges(taken):
    port = any_free()
    assert choose_ports(port, None)["edge"] == port


def test_ports_other_than_the_standard_ones_are_named():
    ports = standard_ports()
    assert moved_ports(ports) == {}
    assert moved_ports(ports | {"orders.mesh": 4711}) == {"orders.mesh": 4711}
