#!/bin/sh
# mypyc 2.4.1 (in mypy 2.4.1): a for loop reads the *name* that it iterates over, or the name at the end of its range, again
# in each turn.
#
# Python evaluates what stands behind `in` once; to bind its name anew in the loop changes nothing for the loop. Compiled,
# a list that is replaced ends the loop early, and an end of a range that is moved moves the end of the loop (it may never
# come). mypy --strict and mypyc say nothing.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/python -m pip install --quiet mypy==2.4.1 setuptools==80.9.0
cat > loops.py <<'PY'
def replaced() -> list[int]:
    waiting, seen = [1, 2, 3], []
    for one in waiting:
        waiting = []
        seen.append(one)
    return seen


def moved() -> int:
    end = turns = 3
    for _ in range(end):
        end += 1
        turns += 1
        if turns == 20:
            break
    return turns
PY
echo 'import loops; print(loops.replaced(), loops.moved())' > show.py
interpreted=$(timeout 60 venv/bin/python show.py)
venv/bin/python -m mypyc --strict loops.py >build.log 2>&1 || { cat build.log; exit 1; }
ls loops.*.so >/dev/null
compiled=$(timeout 60 venv/bin/python show.py)
echo "interpreted: $interpreted"
echo "compiled:    $compiled"
test "$interpreted" = "[1, 2, 3] 6"
test "$compiled" = "[1] 20"
