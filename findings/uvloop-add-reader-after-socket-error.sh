#!/bin/sh
# uvloop: a socket given to add_reader is watched no more after it had one error; asyncio's own loop goes on.
#
# A connected UDP socket gets ECONNREFUSED when nobody listens at the other end (an ICMP message). That is no end of
# such a socket: when somebody listens again, it receives. With asyncio's selector loop the reader is called for what
# comes later. With uvloop 0.23.0 it is called once, for the error, and never again, without a word: libuv stops a poll
# at POLLERR (src/unix/poll.c, uv__poll_io). The answer lies in the socket, unread. remove_reader and add_reader, called
# from the reader, start it again.
#
# Seen: "asyncio: heard", "uvloop: deaf", "uvloop, added anew: heard".
# Fails when that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
cat >"$place/probe.py" <<'PROBE'
import asyncio
import socket
import sys

import uvloop


async def heard(again: bool) -> str:
    loop = asyncio.get_running_loop()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    address = server.getsockname()
    server.close()
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    client.connect(address)
    said = []
    woken = asyncio.Event()

    def readable() -> None:
        try:
            said.append(client.recv(100))
        except OSError as error:
            said.append(type(error).__name__)
            if again:
                loop.remove_reader(client)
                loop.add_reader(client, readable)
        woken.set()

    loop.add_reader(client, readable)
    client.send(b"question")  # nobody listens
    await asyncio.wait_for(woken.wait(), 10)
    assert said == ["ConnectionRefusedError"], said
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(address)
    client.send(b"question")
    woken.clear()
    _, peer = server.recvfrom(100)
    server.sendto(b"answer", peer)
    try:
        await asyncio.wait_for(woken.wait(), 3)
    except TimeoutError:
        pass
    loop.remove_reader(client)
    assert b"answer" in said or client.recv(100) == b"answer", "the answer is there, unread"
    return "heard" if b"answer" in said else "deaf"


found = [
    f"asyncio: {asyncio.run(heard(False))}",
    f"uvloop: {uvloop.run(heard(False))}",
    f"uvloop, added anew: {uvloop.run(heard(True))}",
]
print("\n".join(found))
expected = ["asyncio: heard", "uvloop: deaf", "uvloop, added anew: heard"]
sys.exit(found != expected)
PROBE
"$place/venv/bin/python" "$place/probe.py"
