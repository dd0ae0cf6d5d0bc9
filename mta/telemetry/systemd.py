"""sd_notify: readiness, status line and watchdog for a Type=notify unit (systemd.notify(3))."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Sends ``state`` (``READY=1``, ``WATCHDOG=1``, ``STATUS=...``) when started by systemd; else does nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), address)
