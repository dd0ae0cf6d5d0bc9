#!/bin/sh
# Haraka puts a line break and a blank into body lines of 991 to 998 octets, and says nothing of it.
#
# RFC 5322 section 2.1.1 and RFC 5321 section 4.5.3.1.6 allow lines of 998 octets, without their CRLF, and a server must take
# them. Haraka 3.3.4 counts 992 with the CRLF ([max] data_line_length of its smtp.ini) and breaks what is longer: not only
# in the header, where a break and a blank are a fold and mean nothing, but in the body, where they are content: a long
# line of HTML or of text has a blank in a word, and a DKIM signature over the body is broken. The reply is 250.
# docs/CoreConfig.md of the package says what it does with longer lines; that valid ones are among them one has to reckon.
#
# Output seen: "990 octets: stored as [990]; 991 octets: stored as [990, 2]; 998 octets: stored as [990, 9]".
# Exit code 1 if that changes. Needs: node 20 or newer, npm, python3; a temporary folder and 127.0.0.1 are all that it uses.
set -eu
folder=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi; rm -rf "$folder"' EXIT
cd "$folder"
echo '{}' > package.json
npm install --silent --no-audit --no-fund --ignore-scripts Haraka@3.3.4 >npm.log 2>&1 || { cat npm.log; exit 2; }
mkdir -p here/config here/plugins stored
cp node_modules/Haraka/config/connection.ini node_modules/Haraka/config/log.ini here/config/
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
echo "listen=127.0.0.1:$port" > here/config/smtp.ini
echo here.test > here/config/host_list
printf 'rcpt_to.in_host_list\nstore\n' > here/config/plugins
cat > here/plugins/store.js <<PLUGIN
const fs = require('node:fs')
exports.hook_queue = (next, connection) => {
  const file = fs.createWriteStream('$folder/stored/' + connection.transaction.uuid)
  file.once('close', () => next(OK, 'Stored'))
  connection.transaction.message_stream.pipe(file)
}
PLUGIN
node node_modules/Haraka/bin/haraka -c here >server.log 2>&1 &
server=$!

python3 - "$port" stored <<'PYTHON'
import pathlib, smtplib, sys, time

HEAD = b"From: bob@there.test\r\nTo: ann@here.test\r\nDate: Mon, 1 Jun 2026 12:00:00 +0000\r\nSubject: x\r\n\r\n"
seen = {}
for octets in (990, 991, 998):
    for attempt in range(150):
        try:
            client = smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=20)
            break
        except OSError:
            time.sleep(0.2)
    client.ehlo("there.test")
    assert client.mail("bob@there.test")[0] == client.rcpt("ann@here.test")[0] == 250
    assert client.data(HEAD + b"x" * octets + b"\r\n")[0] == 250
    client.quit()
    [path] = pathlib.Path(sys.argv[2]).iterdir()
    seen[octets] = [len(line) for line in path.read_bytes().partition(b"\r\n\r\n")[2].splitlines()]
    path.unlink()
print("; ".join(f"{octets} octets: stored as {lines}" for octets, lines in seen.items()))
sys.exit(seen != {990: [990], 991: [990, 2], 998: [990, 9]})
PYTHON
