import os
import socket
import subprocess
import sys

import pytest

from libs.stack.errors import StackError
from libs.stack.ports import HOST, OTHERS, Ports, any_free, choose_ports, is_free, listens, moved_ports, standard_ports

CLAIMED = range(19_000, 19_100)
"""Below the ports that other tests and programs are given."""


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def ports():
    with Ports() as ports:
        yield ports


def test_a_port_with_a_listener_is_not_free(taken):
    assert not is_free(taken)
    assert is_free(any_free())
    assert any_free() in OTHERS


def test_a_standard_port_that_is_taken_gives_way(ports, taken):
    # One that nobody else is given: what any_free finds, another worker may take in between.
    spare = next(port for port in CLAIMED if is_free(port))
    assert ports.take(taken, spare) == spare
    assert ports.take(taken) not in (taken, 0)


def test_no_port_is_given_twice(ports):
    port = any_free()
    assert ports.take(port) == port
    assert ports.take(port) != port


def test_a_port_asked_for_by_number_is_refused_with_its_holder_and_the_flag(ports, taken):
    with pytest.raises(StackError, match=rf"port {taken} is held by .*\(pid {os.getpid()}.*--port"):
        choose_ports(ports, taken, {})


def test_a_port_asked_for_by_number_is_the_edges(ports):
    port = any_free()
    assert choose_ports(ports, port, {})["edge"] == port


def test_ports_other_than_the_standard_ones_are_named():
    ports = standard_ports()
    assert moved_ports(ports) == {}
    assert moved_ports(ports | {"orders.mesh": 4711}) == {"orders.mesh": 4711}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names without files")
def test_two_stacks_that_start_together_never_choose_the_same_port(ports):
    first = choose_ports(ports, None, {})
    with Ports() as other:
        second = choose_ports(other, None, {})
    assert not set(first.values()) & set(second.values())


def test_a_listener_is_told_from_its_neighbours(taken):
    assert listens(os.getpid(), taken)
    with subprocess.Popen(["sleep", "600"]) as neighbour:
        assert not listens(neighbour.pid, taken)
        neighbour.kill()
