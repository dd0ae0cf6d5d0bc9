"""Whether this machine owns an address: asked of the system, by binding a socket to it."""

from __future__ import annotations

import socket


def address_fault(address: str) -> str:
    """Why nothing could leave from an IPv4 or IPv6 address; empty when it is ours. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.strerror or str(error)
    return ""
