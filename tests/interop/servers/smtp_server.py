"""smtp-server, the module for Node that test servers and small products are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import ClassVar

from tests.interop.packages import NpmServer
from tests.interop.place import HOST, MAILBOXES, PORT, REFUSE, REFUSE_HEADER, Place
from tests.interop.remote import StoredMessage, maildir_messages

_SERVER = """
'use strict'
const fs = require('node:fs')
const { SMTPServer } = require('MODULE')
const users = new Set(USERS)
const refusal = (code, text) => Object.assign(new Error(text), { responseCode: code })
new SMTPServer({
  name: 'HOST', authOptional: true, key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem'),
  onRcptTo: (to, session, done) => {
    done(users.has(to.address.split('@')[0]) ? null : refusal(550, '5.1.1 No such user'))
  },
  onData: (stream, session, done) => {
    const chunks = []
    stream.on('data', chunk => chunks.push(chunk))
    stream.on('end', () => {
      const trace = Buffer.from(`Received: by HOST with ${session.transmissionType}\\r\\n`)
      const message = Buffer.concat([trace, ...chunks])
      if (message.includes('HEADER: REFUSE')) return done(refusal(550, '5.7.1 Not wanted here'))
      const user = session.envelope.rcptTo[0].address.split('@')[0]
      fs.writeFile(`mail/${user}/new/${session.id}-${session.transaction}`, message, done)
    })
  }
}).listen(PORT, '0.0.0.0')
"""


class SmtpServer(NpmServer):
    name: ClassVar = "smtp-server"
    title: ClassVar = "smtp-server (Node)"
    how: ClassVar = "`authOptional`, a certificate, and handlers of ours that know the users, refuse, and store"
    package: ClassVar = "smtp-server"
    pinned: ClassVar = "3.21.6"
    no_bounces: ClassVar = "it relays nothing"

    def command(self, place: Place) -> list[str]:
        for name in MAILBOXES:
            (place.mail / name / "new").mkdir(parents=True)
        code = (
            _SERVER.replace("USERS", json.dumps(MAILBOXES)).replace("HEADER", REFUSE_HEADER).replace("REFUSE", REFUSE)
        )
        code = code.replace("MODULE", str(self.module)).replace("HOST", HOST).replace("PORT", str(PORT))
        return ["node", str(place.write("server.js", code))]

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return maildir_messages(place.mail)


SERVER = SmtpServer()
