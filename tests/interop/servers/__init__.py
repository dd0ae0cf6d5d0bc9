"""The servers, in the order of the table."""

from __future__ import annotations

from tests.interop.remote import RemoteServer
from tests.interop.servers.chasquid import SERVER as chasquid
from tests.interop.servers.courier import SERVER as courier
from tests.interop.servers.exim import SERVER as exim
from tests.interop.servers.haraka import SERVER as haraka
from tests.interop.servers.maddy import SERVER as maddy
from tests.interop.servers.mox import SERVER as mox
from tests.interop.servers.opensmtpd import SERVER as opensmtpd
from tests.interop.servers.postfix import SERVER as postfix
from tests.interop.servers.sendmail import SERVER as sendmail
from tests.interop.servers.smtp_server import SERVER as smtp_server

SERVERS: tuple[RemoteServer, ...] = (
    postfix,
    exim,
    opensmtpd,
    sendmail,
    courier,
    chasquid,
    maddy,
    mox,
    haraka,
    smtp_server,
)
