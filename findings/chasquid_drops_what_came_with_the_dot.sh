#!/bin/sh
# chasquid offers PIPELINING, and loses each command that arrives in one write with the end of a message.
#
# RFC 2920 section 3.1 allows a client to send them so: "The actual transfer of message content is explicitly allowed to be
# the first 'command' in a group. That is, a RSET/MAIL FROM sequence used to begin a new mail transaction can be placed in
# the same group as the final transfer of the headers and body of the previous message."
#
# Debian's chasquid 1.11-2+b2 answers the message with 250 and nothing of what stood behind it: no reply within 5 s, where
# its other replies take milliseconds. The connection lives: the same commands, sent again, are answered at once. A client
# that waits for the replies that it is owed waits until it gives up (five minutes in RFC 5321), once for each message.
# The group MAIL, RCPT, DATA before the message is answered as it should be, so the loss is not of pipelining as such.
#
# Output seen: "end of data 250; MAIL behind it: no reply in 5 s; MAIL sent again: 250". Exit code 1 if that changes.
# Needs: apt-get and dpkg of Debian 12 on amd64, python3; no root. All of it is in a temporary folder and on 127.0.0.1.
set -eu
folder=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi; rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
apt-get -qq download chasquid=1.11-2+b2 2>/dev/null
dpkg-deb --extract chasquid_*.deb .

python3 - "$folder" <<'PYTHON'
import pathlib, socket, subprocess, sys

folder = pathlib.Path(sys.argv[1])
with socket.create_server(("127.0.0.1", 0)) as probe:
    (folder / "port").write_text(str(probe.getsockname()[1]))
domain, certificates = folder / "etc/domains/here.test", folder / "etc/certs/here.test"
for made in (domain, certificates, folder / "data"):
    made.mkdir(parents=True)
subprocess.run(
    ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here.test",
     "-keyout", certificates / "privkey.pem", "-out", certificates / "fullchain.pem"],
    check=True, capture_output=True,
)
(domain / "users").write_text(
    'users: { key: "ann" value: { scrypt: { logN: 14 r: 8 p: 1 keyLen: 32 salt: "x" encrypted: "x" } } }\n'
)
(folder / "etc/chasquid.conf").write_text(
    f'hostname: "here.test"\nsmtp_address: "127.0.0.1:{(folder / "port").read_text()}"\n'
    f'data_dir: "{folder}/data"\nmail_delivery_agent_bin: "/bin/true"\nmail_log_path: "<stderr>"\n'
)
PYTHON

usr/bin/chasquid --config_dir="$folder/etc" >server.log 2>&1 &
server=$!

python3 - "$(cat port)" <<'PYTHON'
import socket, sys, time

port = int(sys.argv[1])
for attempt in range(100):
    try:
        connection = socket.create_connection(("127.0.0.1", port), 5)
        break
    except OSError:
        time.sleep(0.1)
connection.settimeout(5)
lines = connection.makefile("rb")


def reply():
    while True:
        line = lines.readline().decode()
        if line[3:4] != "-":
            return line[:3]


ENVELOPE = b"MAIL FROM:<bob@there.test>\r\nRCPT TO:<ann@here.test>\r\nDATA\r\n"
assert reply() == "220"
connection.sendall(b"EHLO there.test\r\n")
assert reply() == "250"
connection.sendall(ENVELOPE)
group = [reply() for _ in range(3)]
assert group == ["250", "250", "354"], f"the first group gets {group}"
connection.sendall(b"From: bob@there.test\r\nTo: ann@here.test\r\nSubject: x\r\n\r\nx\r\n.\r\n" + ENVELOPE)
end = reply()
try:
    behind = reply()
except TimeoutError:
    behind = "no reply in 5 s"
# A file over a socket is of no use after a time-out: a new one, on the same connection.
lines = connection.makefile("rb")
connection.sendall(b"MAIL FROM:<bob@there.test>\r\n")
again = reply()
print(f"end of data {end}; MAIL behind it: {behind}; MAIL sent again: {again}")
sys.exit((end, behind, again) != ("250", "no reply in 5 s", "250"))
PYTHON
