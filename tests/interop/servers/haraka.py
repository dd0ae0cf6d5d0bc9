"""Haraka: its own list of plugins, with TLS and one more that knows users, refuses, and stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import ClassVar

from tests.interop.packages import NpmServer
from tests.interop.place import DOMAIN, HOST, MAILBOXES, PORT, REFUSE, REFUSE_HEADER, Place
from tests.interop.remote import StoredMessage, maildir_messages

_PLUGIN = """
'use strict'
const fs = require('node:fs')
const users = new Set(USERS)
exports.hook_mail = (next, connection) => { connection.relaying = RELAYING; next() }
exports.hook_rcpt = (next, connection, params) => {
  RELAYING || users.has(params[0].user) ? next(OK) : next(DENY, `No such user ${params[0].user}`)
}
exports.hook_data_post = (next, connection) => {
  connection.transaction.header.get('HEADER').includes('REFUSE') ? next(DENY, 'Not wanted here') : next()
}
exports.hook_queue = (next, connection) => {
  if (RELAYING) return next()
  const { rcpt_to, uuid, message_stream } = connection.transaction
  const file = fs.createWriteStream(`MAIL/${rcpt_to[0].user}/new/${uuid}`)
  file.once('close', () => next(OK, 'Stored'))
  message_stream.pipe(file)
}
"""


class Haraka(NpmServer):
    name: ClassVar = "haraka"
    title: ClassVar = "Haraka"
    how: ClassVar = (
        "its own list of plugins and the plugin `tls`; a plugin of ours that knows the users, refuses in `data_post`, "
        "and stores in `queue`"
    )
    warns: ClassVar = False
    gives_up: ClassVar = True
    package: ClassVar = "Haraka"
    pinned: ClassVar = "3.3.4"

    def command(self, place: Place) -> list[str]:
        for name in MAILBOXES:
            (place.mail / name / "new").mkdir(parents=True)
        for ini in ("connection.ini", "log.ini"):  # as `haraka --install` does
            place.write(f"config/{ini}", (self.module / "config" / ini).read_text())
        place.write("config/smtp.ini", f"listen=0.0.0.0:{PORT}\n")
        place.write("config/me", f"{HOST}\n")
        place.write("config/host_list", f"{DOMAIN}\n")
        place.write("config/plugins", "tls\nmail_from.is_resolvable\ninterop\nrcpt_to.in_host_list\n")
        place.write("config/tls_key.pem", (place.directory / "key.pem").read_text(), mode=0o600)
        place.write("config/tls_cert.pem", (place.directory / "cert.pem").read_text())
        code = (
            _PLUGIN.replace("USERS", json.dumps(MAILBOXES)).replace("HEADER", REFUSE_HEADER).replace("REFUSE", REFUSE)
        )
        code = code.replace("RELAYING", json.dumps(place.is_relay))
        place.write("config/outbound.ini", "temp_fail_intervals=none\n")
        place.write("plugins/interop.js", code.replace("MAIL", str(place.mail)))
        return ["node", str(self.module / "bin" / "haraka"), "-c", str(place.directory)]

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return maildir_messages(place.mail)


SERVER = Haraka()
