from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import msgspec
import pytest

from mta.model.errors import BadInput
from mta.model.timeouts import SessionTimeouts
from mta.settings.rules_file import load_rules
from mta.settings.rules_tables import RULE_KEYS
from mta.settings.toml_source import FILE_BYTES_MAX
from mta.traffic.rules import Rule, Scope, Tls

FULL = """\
[[rule]]
name = "first"
mx = ["*.a.example", "?.b.example"]
egress_ids = [1, "3-5", " 7 - 9 "]
scope = "path"
connections_max = 5
connections_per_path_max = 2
messages_per_connection_max = 50
messages_per_hour_max = 10_000
tls = "required"
pipelining = false
chunking = false
recipients_per_transaction_max = 100
timeouts = { connect_s = 10, dot_s = 900.5 }

[[rule]]
name = "rest"
mx = "*"
"""


@pytest.fixture
def written(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(content: str | bytes) -> Path:
        path = tmp_path / "rules.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_every_key_arrives(written) -> None:  # type: ignore[no-untyped-def]
    path = written(FULL)
    first, rest = load_rules(path).rules
    assert first == Rule(
        name="first",
        mx="*.a.example, ?.b.example",
        egress_ids=((1, 1), (3, 5), (7, 9)),
        scope=Scope.PATH,
        connections_max=5,
        connections_per_path_max=2,
        messages_per_connection_max=50,
        messages_per_hour_max=10_000,
        tls=Tls.REQUIRED,
        pipelining=False,
        chunking=False,
        recipients_per_transaction_max=100,
        timeouts=SessionTimeouts(connect_s=10, dot_s=900.5),
        origin=f"{path}:1",
    )
    assert rest == Rule("rest", "*", origin=f"{path}:16")
    assert rest.recipients_per_transaction_max == 1


def test_a_rules_table_has_the_keys_of_a_rule() -> None:
    called_otherwise = {"site": "sites", "domain": "domains"}
    of_table = {called_otherwise.get(key, key) for key in RULE_KEYS}
    assert of_table | {"origin"} == {field.name for field in msgspec.structs.fields(Rule)}


@pytest.mark.parametrize(
    ("line", "key", "what"),
    [
        ("conections_max = 5", "conections_max", "did you mean 'connections_max'?"),
        ("zzz = 5", "zzz", "unknown key Known here: automations,"),
        ("connections_max = -1", "connections_max", "-1 is not allowed; expected an integer from 1 to 1,000,000,000"),
        ("connections_max = 0", "connections_max", "0 is not allowed"),
        ("messages_per_hour_max = 1.5", "messages_per_hour_max", "1.5 is not allowed; expected an integer"),
        ("messages_per_hour_max = true", "messages_per_hour_max", "true is not allowed"),
        ("recipients_per_transaction_max = 0", "recipients_per_transaction_max", "0 is not allowed"),
        ("recipients_per_transaction_max = 1_001", "recipients_per_transaction_max", "1001 is not allowed"),
        ("recipients_per_transaction_max = 2.5", "recipients_per_transaction_max", "2.5 is not allowed"),
        ("recipient_per_transaction_max = 5", "recipient_per_transaction_max", "did you mean 'recipients_per_transa"),
        ('messages_per_connection_max = "5"', "messages_per_connection_max", "'5' is not allowed"),
        ('scope = "ip"', "scope", "'ip' is not allowed; expected one of 'path', 'egress', 'shared'"),
        ('tls = "Required"', "tls", "expected one of 'disabled', 'opportunistic', 'required'"),
        ('pipelining = "no"', "pipelining", "expected true or false"),
        ('egress_ids = ["5-3"]', "egress_ids", "egress ids go from 1"),
        ("egress_ids = [0]", "egress_ids", "egress ids go from 1"),
        ("egress_ids = [-1]", "egress_ids", '-1 is not allowed; expected an egress id (7) or a range ("1-5")'),
        ('egress_ids = ["1-"]', "egress_ids", "expected an egress id"),
        ("egress_ids = [99999999999]", "egress_ids", "expected an egress id"),
        ("egress_ids = [4294967296]", "egress_ids", "egress ids go from 1"),
        ('egress_ids = "1-5"', "egress_ids", "expected an array"),
        ("egress_ids = [true]", "egress_ids", "not allowed"),
        ("timeouts = { conect_s = 1 }", "timeouts.conect_s", "did you mean 'connect_s'?"),
        ("timeouts = { connect_s = 0 }", "timeouts.connect_s", "expected seconds from 0.05 to 86400"),
        ("timeouts = { dot_s = nan }", "timeouts.dot_s", "nan is no finite number"),
        ("timeouts = { dot_s = -inf }", "timeouts.dot_s", "-inf is no finite number"),
        ("timeouts = { greeting_s = 900 }", "timeouts.greeting_s", "900 is more than setup_s (660)"),
        ("timeouts = 5", "timeouts", "expected a table, got 5"),
        ("origin = 'x'", "origin", "unknown key"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_refused_with_its_line_and_what_is_allowed(  # type: ignore[no-untyped-def]
    written, line: str, key: str, what: str
) -> None:
    path = written(f'[[rule]]\nname = "ok"\nmx = "*.ok.example"\n\n[[rule]]\nname = "r"\nmx = "*"\n{line}\n')
    with pytest.raises(BadInput) as caught:
        load_rules(path)
    assert caught.value.where == f"{path}:8"
    assert caught.value.what.startswith(f"rule.{key}: ")
    assert what in caught.value.what


@pytest.mark.parametrize(
    ("mx", "what"),
    [
        ('""', "must not be empty"),
        ("[]", "at least one mask"),
        ('["*.a.example", ""]', "must not be empty"),
        ('"*.a.example, *.b.example"', "write several masks as an array"),
        ('".a.example"', "no name begins with a dot"),
        ('"*.a.example."', "without their trailing dot"),
        ('"b\\u00fccher.example"', "A-label"),
        ("5", "expected a string or an array, each a string"),
        ('"a b"', "letters, digits"),
    ],
)
def test_masks_that_could_never_fit_are_refused(written, mx: str, what: str) -> None:  # type: ignore[no-untyped-def]
    path = written(f'[[rule]]\nname = "r"\n\nmx = {mx}\n')
    with pytest.raises(BadInput) as caught:
        load_rules(path)
    assert str(caught.value).startswith(f"{path}:4: rule.mx: ")
    assert what in caught.value.what


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('[[rule]]\nmx = "*"\n', ":1", "the key 'name' is missing"),
        ('[[rule]]\nname = "a"\n', ":1", "the key 'mx' is missing; expected a string or"),
        ('[rule]\nname = "a"\nmx = "*"\n', ":1", "write [[rule]], with two brackets"),
        ('[[rules]]\nname = "a"\n', ":1", "did you mean 'rule'?"),
        ('[[rule]]\nname = "a b"\nmx = "*"\n', ":2", "1 to 64 letters"),
        ('[[rule]]\nname = "a|b"\nmx = "*"\n', ":2", "1 to 64 letters"),
        ('rule = ["x"]', ":1", "expected a table, got 'x'"),
        ('[[rule]]\nname = "a"\nname = "b"\n', ":3", "not TOML: Cannot overwrite a value"),
        ("[[rule]]\nname = \n", ":2", "not TOML: Invalid value"),
        ('[[rule]]\nname = "a', ":2", "not TOML"),
        ("a = " + "[" * 5000, "", "nested too deeply"),
        ("a = " + "9" * 5000, "", "not TOML"),
        (b"[[rule]]\nname = '\xff'\n", ":2", "byte 0xff is not UTF-8"),
        ("[[rule]]\n".encode("utf-16"), ":1", "UTF-16"),
        (b"a = '\x00'", ":1", "not TOML"),
    ],
)
def test_broken_files_are_refused_with_their_line(  # type: ignore[no-untyped-def]
    written, text: str | bytes, line: str, what: str
) -> None:
    path = written(text)
    with pytest.raises(BadInput) as caught:
        load_rules(path)
    assert caught.value.where == f"{path}{line}"
    assert what in caught.value.what


def test_two_rules_of_one_name_are_refused(written) -> None:  # type: ignore[no-untyped-def]
    path = written('[[rule]]\nname = "a"\nmx = "*.x"\n[[rule]]\nname = "a"\nmx = "*.y"\n')
    with pytest.raises(BadInput, match=rf":5: rule\.name: the name 'a' is taken by the rule at {path}:1$"):
        load_rules(path)


def test_a_rule_below_the_generic_one_can_never_be_reached(written) -> None:  # type: ignore[no-untyped-def]
    path = written('[[rule]]\nname = "all"\nmx = "*"\n[[rule]]\nname = "late"\nmx = "*.a.example"\n')
    with pytest.raises(BadInput, match=r":6: rule\.mx: rule 'late' can never be reached: rule 'all' at .*:1 takes"):
        load_rules(path)


def test_a_generic_rule_for_some_egresses_leaves_the_rest_reachable(written) -> None:  # type: ignore[no-untyped-def]
    path = written(
        '[[rule]]\nname = "some"\nmx = "*"\negress_ids = ["1-5"]\n[[rule]]\nname = "a"\nmx = "*.a.example"\n'
    )
    assert load_rules(path).match("mx.a.example", 6).name == "a"


def test_a_byte_order_mark_and_crlf_change_nothing(written) -> None:  # type: ignore[no-untyped-def]
    plain = load_rules(written(FULL)).rules
    marked = load_rules(written(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())).rules
    assert marked == plain


def test_no_rules_at_all_leave_the_default(written) -> None:  # type: ignore[no-untyped-def]
    assert load_rules(written("# nothing yet\n")).match("mx.example", 1).name == "default"


def test_files_that_are_none_are_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    files_open = len(os.listdir("/proc/self/fd"))
    for name, what in [("absent", "No such file"), ("pipe", "not a regular file"), (".", "not a regular file")]:
        with pytest.raises(BadInput, match=what):
            load_rules(tmp_path / name)
    with pytest.raises(BadInput, match="cannot be opened"):
        load_rules("a\0b")
    assert len(os.listdir("/proc/self/fd")) == files_open


def test_a_huge_file_is_refused(written) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match="larger than 1,048,576 bytes"):
        load_rules(written("#" * (FILE_BYTES_MAX + 1)))


def test_too_many_rules_are_refused(written) -> None:  # type: ignore[no-untyped-def]
    text = "".join(f'[[rule]]\nname = "r{i}"\nmx = "m{i}"\n' for i in range(2001))
    with pytest.raises(BadInput, match=":6001: rule: more than 2000 rules"):
        load_rules(written(text))


def test_any_mutation_is_loaded_or_refused_with_a_place_and_nothing_else(written) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(7)
    for _ in range(400):
        content = bytearray(FULL.encode())
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(content))
            match rng.randrange(3):
                case 0:
                    content[at] = rng.choice(b'"[]{}=,.\n#-0a\xff\x00')
                case 1:
                    del content[at : at + rng.randint(1, 9)]
                case _:
                    content[at:at] = content[at : at + rng.randint(1, 20)]
        path = written(bytes(content))
        refused = None
        try:
            load_rules(path)
        except BadInput as error:
            refused = error
        assert refused is None or (refused.where.startswith(str(path)) and refused.what)


def test_a_file_replaced_while_it_is_read_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    short, long = FULL, FULL.replace('name = "rest"', 'name = "other"') + "#" * 200_000
    path.write_text(short)
    is_over = threading.Event()

    def replace() -> None:
        while not is_over.is_set():
            for text in (long, short):
                (tmp_path / "new").write_text(text)
                os.replace(tmp_path / "new", path)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        seen = {load_rules(path).rules[-1].name for _ in range(100)}
    finally:
        is_over.set()
        writer.join()
    assert seen <= {"rest", "other"}


def test_the_name_of_the_built_in_rule_is_not_to_be_had(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nname = "default"\nmx = "*"\n')
    with pytest.raises(BadInput, match=r"rules.toml:2: .*built-in rule"):
        load_rules(file)


@pytest.mark.parametrize("empty", ["rules.toml", "more.toml"])
def test_a_file_with_nothing_in_it_is_half_written_and_refused(tmp_path: Path, empty: str) -> None:
    (tmp_path / "rules.toml").write_text('include = ["more.toml"]\n[[rule]]\nname = "a"\nmx = "*"\n')
    (tmp_path / "more.toml").write_text("# none yet\n")
    assert len(load_rules(tmp_path / "rules.toml")) == 1
    (tmp_path / empty).write_text(" \n")
    with pytest.raises(BadInput) as caught:
        load_rules(tmp_path / "rules.toml")
    assert (caught.value.where, caught.value.what.split(";")[0]) == (str(tmp_path / empty), "is empty")
