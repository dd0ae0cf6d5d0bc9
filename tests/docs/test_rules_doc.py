"""docs/rules.md says what the code does: every key, every default, every example."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from mta.model.timeouts import SessionTimeouts
from mta.settings.rules_automations import STAGES, TARGETS
from mta.settings.rules_file import RULES_MAX, TIMEOUT_S_MAX, TIMEOUT_S_MIN, parse_rules
from mta.settings.rules_tables import (
    RULE_KEYS,
    TRANSACTION_RECIPIENTS_MAX,
    AutomationTable,
    ErrorBlockTable,
    ProviderTable,
    RecoveryTable,
    ValuesTable,
    WarmUpTable,
    keys_of,
)
from mta.settings.toml_source import FILE_BYTES_MAX, TomlSource
from mta.traffic.automations import Act
from mta.traffic.backoff import DELAY_S_MAX, INITIAL_DELAY_S
from mta.traffic.rules import DEFAULT_RULE, Rule, Scope, Tls

TEXT = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))
EXAMPLES = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


LIKE_A_RULE = [key for key in RULE_KEYS if key not in ("name", "mx", "site", "domain")]


def test_each_key_of_a_rule_has_its_section_and_the_reverse() -> None:
    assert set(SECTIONS) == set(RULE_KEYS)


def test_each_timeout_stands_in_the_table_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+_s)` \| (\d+) \|", SECTIONS["timeouts"], re.MULTILINE)
    assert {key: float(value) for key, value in rows} == msgspec.structs.asdict(SessionTimeouts())


@pytest.mark.parametrize(("key", "choices"), [("scope", Scope), ("tls", Tls)])
def test_each_choice_is_named_and_the_default_marked(key: str, choices: type[Scope | Tls]) -> None:
    assert all(f'`"{choice.value}"`' in SECTIONS[key] for choice in choices)
    assert f'`"{getattr(Rule("r", "*"), key)}"` (default)' in SECTIONS[key]


@pytest.mark.parametrize(("key", "default"), [("pipelining", True), ("chunking", False), ("learn_hosts", True)])
def test_the_default_of_each_switch_is_marked(key: str, default: bool) -> None:
    assert getattr(Rule("r", "*"), key) is default
    assert f"`{str(default).lower()}` (default)" in SECTIONS[key]


def test_recipients_that_share_a_transaction_have_their_bounds_and_default() -> None:
    default = Rule("r", "*").recipients_per_transaction_max
    assert f"from {default} (default) to {TRANSACTION_RECIPIENTS_MAX:,}" in SECTIONS["recipients_per_transaction_max"]


def test_the_built_in_rule_is_described_as_it_is() -> None:
    differing = {
        key: getattr(DEFAULT_RULE, key)
        for key in LIKE_A_RULE
        if getattr(DEFAULT_RULE, key) != getattr(Rule("r", "*"), key)
    }
    assert set(differing) == {"scope", "connections_max", "messages_per_connection_max"}
    paragraph = TEXT.partition("the built-in rule `default` holds")[2].partition("\n\n")[0]
    for key, value in differing.items():
        assert f'`{key} = "{value}"`' in paragraph or f"`{key} = {value}`" in paragraph


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_loaded(example: str) -> None:
    whole = example
    if not example.startswith("["):
        whole = '[[rule]]\nname = "r"\n' + example
        if not re.search("^(mx|site|domain) =", example, re.MULTILINE):
            whole += 'mx = "*"\n'
    elif "[[rule]]" not in example:
        whole += '[[rule]]\nname = "r"\nmx = "*"\n'
    assert len(parse_rules(TomlSource(whole, "docs/rules.md")))


def test_the_figures_named_are_those_of_the_code() -> None:
    assert (TIMEOUT_S_MIN, TIMEOUT_S_MAX) == (0.05, 86_400)
    assert "from 0.05 to 86,400" in TEXT
    assert FILE_BYTES_MAX == 1 << 20
    assert RULES_MAX == 2_000
    assert (INITIAL_DELAY_S, DELAY_S_MAX) == (4, 600)


def rows_of(heading: str) -> dict[str, str]:
    """The first table behind a heading: key -> what stands in its last column."""
    section = TEXT.partition(f"\n{heading}\n")[2]
    table = section[section.index("| key |") :].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \|.* \| ([^|]+) \|$", table, re.MULTILINE))


@pytest.mark.parametrize(
    ("heading", "table"),
    [("## Automations", AutomationTable), ("## Error-rate blocks", ErrorBlockTable), ("## Warm-up plans", WarmUpTable)],
)
def test_the_keys_of_each_other_table_stand_with_their_defaults(heading: str, table: type[msgspec.Struct]) -> None:
    rows = rows_of(heading)
    assert set(rows) == set(keys_of(table))
    for field in msgspec.structs.fields(table):
        if field.required:
            assert rows[field.name] == "required"
        elif isinstance(field.default, int | float):
            assert rows[field.name] == f"{field.default:g}"
        elif isinstance(field.default, str) and field.default:
            assert rows[field.name] == f'`"{field.default}"`'


def test_a_provider_has_what_defaults_have_and_a_total() -> None:
    assert set(keys_of(ProviderTable)) - set(keys_of(ValuesTable)) == {"name", "total"}
    assert set(rows_of("### Providers")) == {"name", "total"}


def test_figures_of_the_recovery_are_its_defaults() -> None:
    shipped = RecoveryTable()
    assert f"`step_percent` (default {shipped.step_percent:g}" in SECTIONS["recovery"]
    assert f"`interval_s` (default {shipped.interval_s})" in SECTIONS["recovery"]


def test_each_act_target_and_stage_is_named() -> None:
    section = TEXT.partition("\n## Automations\n")[2].partition("\n## ")[0]
    acts = {row.split("|")[1].strip(): row for row in section.splitlines() if row.startswith('| `"')}
    assert set(acts) == {f'`"{act.value}"`' for act in Act}
    for act, targets in TARGETS.items():
        named = re.findall(r'`"([\w-]+)"`', acts[f'`"{act.value}"`'].split("|")[3])
        assert named == [target.value for target in targets]
    assert f"`{'`, `'.join(STAGES)}`" in section
