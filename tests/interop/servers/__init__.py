"""The servers, in the order of the table."""

from __future__ import annotations

from tests.interop.remote import RemoteServer
from tests.interop.servers import chasquid, courier, exim, haraka, maddy, mox, opensmtpd, postfix, sendmail, smtp_server

SERVERS: tuple[RemoteServer, ...] = tuple(
    module.SERVER for module in (postfix, exim, opensmtpd, sendmail, courier, chasquid, maddy, mox, haraka, smtp_server)
)
