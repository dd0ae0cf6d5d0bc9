from __future__ import annotations

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from mta.settings.toml_lines import key_lines

TEXT = '''\
# a = 1
top = 1

[table] # comment with [brackets] and "quotes
plain = "a # no comment, ] no end"
dotted . "quoted.key" = 'lit\\'
multi = """
rule = "not a key"
\\""" still inside ""
"""
after_multi = true

[[rule]]
name = "first"
masks = [
    "a", # ] }
    "b",
    { deep = [1, 2], other = "x" },
]
[rule.timeouts]
connect_s = 1
[[rule]]
name = "second"
inline = { a = 1, b = { c = 2 } }
'''


def test_every_key_and_element_knows_its_line() -> None:
    tomllib.loads(TEXT)
    lines = key_lines(TEXT)
    assert lines["top",] == 2
    assert lines["table",] == 4
    assert lines["table", "plain"] == 5
    assert lines["table", "dotted", "quoted.key"] == 6
    assert lines["table", "multi"] == 7
    assert lines["table", "after_multi"] == 11
    assert lines["rule", 0] == 13
    assert lines["rule", 0, "name"] == 14
    assert lines["rule", 0, "masks", 1] == 17
    assert lines["rule", 0, "masks", 2, "deep", 1] == 18
    assert lines["rule", 0, "masks", 2, "other"] == 18
    assert lines["rule", 0, "timeouts"] == 20
    assert lines["rule", 0, "timeouts", "connect_s"] == 21
    assert lines["rule", 1] == 22
    assert lines["rule", 1, "inline", "b", "c"] == 24
    assert not [path for path in lines if "a" in path[:1] or (path[-1:] == ("rule",) and len(path) > 1)]


def paths_of(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= paths_of(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            found |= paths_of(inner, (*path, i))
    return found


def test_the_paths_are_those_of_the_values() -> None:
    assert set(key_lines(TEXT)) == paths_of(tomllib.loads(TEXT))


PIECES = st.sampled_from(
    [
        "[t]\n",
        "[[r]]\n",
        "[r.x]\n",
        "[t.u.v]\n",
        "k = 1\n",
        "k='a'\n",
        'k = "\\"]"\n',
        "m = '''\n'''\n",
        'n = """"q""""\n',
        "l = [1,\n[2,3 ] , ]\n",
        "i = {a=1,b.c='}'}\n",
        "# c\n",
        "\n",
        '"q k" = 2024-01-01T00:00:00Z\n',
        "a.b = -1.5e3 # x\n",
    ]
)


@given(st.lists(PIECES, max_size=8))
@settings(max_examples=400)
def test_whatever_tomllib_accepts_is_located(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    assert set(lines) == paths_of(value)
    written = text.split("\n")
    for path, line in lines.items():
        if isinstance(path[-1], str):
            assert path[-1] in written[line - 1]
