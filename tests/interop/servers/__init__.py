"""The servers, in the order of the table."""

from __future__ import annotations

from tests.interop.remote import RemoteServer
from tests.interop.servers.exim import SERVER as exim
from tests.interop.servers.opensmtpd import SERVER as opensmtpd
from tests.interop.servers.postfix import SERVER as postfix

SERVERS: tuple[RemoteServer, ...] = (postfix, exim, opensmtpd)
