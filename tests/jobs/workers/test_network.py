"""Where nodes meet; the interface that ranks take is tested in tests/orchestrator/cluster/test_cluster.py, also on
hosts of their own."""

import socket

import pytest
from real import free_port

from jobs.workers import network


def test_somebody_listens_until_its_port_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert network.listens("127.0.0.1", port)
        assert network.listens("127.0.0.1", port), "a queue that nobody empties is still somebody"
    assert not network.listens("127.0.0.1", port)


@pytest.mark.parametrize("host", ["", "no such host", "256.0.0.1"])
def test_a_host_that_there_is_not_does_not_listen(host: str) -> None:
    assert not network.listens(host, free_port())


def test_a_host_that_does_not_answer_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is off: the kernel drops what comes to a queue that is full."""
    monkeypatch.setattr(network, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        with socket.create_connection(address):
            assert not network.listens(*address)
