"""Whether sessions can leave by an address of this machine: tried, as the kernel alone knows."""

from __future__ import annotations

import os
import socket


def why_not_here(address: str) -> str:
    """Why no session can be bound to an IP literal here; empty when one can."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.bind((address, 0))
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return ""
