#!/bin/sh
# mypyc 2.4.1 (in mypy 2.4.1): a coroutine that waits while an exception is under way gets another task's exception back.
#
# One task of three waits in `finally` with ValueError(n) under way. Interpreted, each ends with its own exception.
# Compiled, all three end with the last one: the exception that is being handled is kept by thread, and suspended
# coroutines do not put it away. mypy --strict and mypyc say nothing. Without a second task at work nothing is seen.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/python -m pip install --quiet mypy==2.4.1 setuptools==80.9.0
cat > waits.py <<'PY'
import asyncio


async def fail(number: int) -> None:
    try:
        raise ValueError(str(number))
    finally:
        await asyncio.sleep(0)
PY
cat > show.py <<'PY'
import asyncio

import waits


async def main() -> None:
    ended = await asyncio.gather(*(waits.fail(number) for number in (1, 2, 3)), return_exceptions=True)
    print(", ".join(map(repr, ended)))


asyncio.run(main())
PY
interpreted=$(timeout 60 venv/bin/python show.py)
venv/bin/python -m mypyc --strict waits.py >build.log 2>&1 || { cat build.log; exit 1; }
ls waits.*.so >/dev/null
compiled=$(timeout 60 venv/bin/python show.py)
echo "interpreted: $interpreted"
echo "compiled:    $compiled"
test "$interpreted" = "ValueError('1'), ValueError('2'), ValueError('3')"
test "$compiled" = "ValueError('3'), ValueError('3'), ValueError('3')"
