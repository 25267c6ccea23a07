"""Where a node meets the others: the interface that it is known by, and whether somebody listens. No ray, no torch."""

from __future__ import annotations

import ipaddress
import os
import socket

CONNECT_S = 2.0
"""How long a node may take to accept a connection, which its kernel does however busy it is."""


def use_the_nodes_network(address: str) -> None:
    """Have gloo and NCCL meet on the interface by which the cluster knows this node, unless the user has named another.

    gloo takes the one that the host's name resolves to, which often is loopback, and NCCL the first that is up, which
    may be a bridge of containers: no other node reaches either.
    """
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address.partition("%")[0] == address for known in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # by itself it is the beginning of a name
            return


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:  # a name
        return False


def listener(address: str) -> socket.socket:
    """Open a socket that takes connections to one address of this machine, on a free port. Where the address is none of
    its own, as behind some NAT, it listens on all of them."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family, backlog=2048)
    except OSError:
        if is_loopback(address):
            raise
        return socket.create_server(("", 0), family=family, backlog=2048)


def listens(host: str, port: int) -> bool:
    """Return whether a process at `host` accepts connections to `port`: not if it has ended, nor if the host is off."""
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError:
        return False
    return True
