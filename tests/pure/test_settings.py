from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import trustme

from mta.model.egress import Egress
from mta.model.errors import BadInput
from mta.model.tls import Dane, TlsSettings
from mta.settings import Settings, load_rules, load_settings
from mta.settings.config import TABLE_NAMES, FailureSettings

CONFIG = Path(__file__).parents[2] / "config"
TWO = """\
[[egress]]
name = "a"
id = 1
helo = "a.mail.example.com"
source_ipv4 = "192.0.2.1"
[[egress]]
name = "b"
id = 2
helo = "B.mail.example.com"
source_ipv6 = "2001:DB8::0:1"
weight = 5
include_domains = ["*.com"]
"""


def load(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "mta.toml"
    path.write_text(text)
    return load_settings(path, environment=environment or {}, host_name="Node-1.example.com")


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "mta.toml"))
    return str(caught.value).removeprefix(str(tmp_path / "mta.toml"))


def test_nothing_set_gives_the_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path, "")
    without_file = load_settings(environment={}, host_name="Node-1.example.com")
    # Own bounce rules stand beside the file, where there is one.
    assert settings.failures == FailureSettings(own=tmp_path / "bounce-rules.local.toml")
    assert msgspec.structs.replace(settings, failures=without_file.failures) == without_file
    assert settings.node.name == "Node-1.example.com"
    assert settings.egresses == (Egress("default", 1, "node-1.example.com"),)
    assert settings.pools["default"].egresses == settings.egresses
    assert settings.children.effective_count >= 1
    assert settings.rules_file is None
    assert settings.smtp.port == 25


def test_a_host_name_that_suits_nobody_is_made_to_fit() -> None:
    settings = load_settings(environment={}, host_name="-été host-")
    assert re.fullmatch(r"[A-Za-z0-9._-]+", settings.node.name)
    assert settings.egresses[0].helo == "localhost"


def test_the_shipped_files_load_and_show_every_key_with_its_default() -> None:
    shipped = load_settings(CONFIG / "mta.toml", environment={}, host_name="h")
    assert shipped.rules_file == CONFIG / "mx-rules.toml"
    rules = load_rules(shipped.rules_file)
    assert len(rules) >= 15
    assert rules.rules[-1].masks == ("*",)

    text = (CONFIG / "mta.toml").read_text()
    shown = set(re.findall(r"^#? ?([a-z_0-9]+) = ", text, re.MULTILINE))
    for name in ("node", "database", "master", "children", "dns", "smtp"):
        defaults = getattr(shipped, name)
        assert {f.name for f in msgspec.structs.fields(type(defaults))} <= shown
    assert {f.name for f in msgspec.structs.fields(Egress)} <= shown
    assert all(f"[{name}]" in text for name in TABLE_NAMES)


def test_the_commented_defaults_of_the_shipped_file_are_the_defaults(tmp_path: Path) -> None:
    text = (CONFIG / "mta.toml").read_text().partition("# Addresses to send from.")[0].replace("mx-rules.toml", "r")
    settings = load(tmp_path, re.sub(r"^# ([a-z_0-9]+ = )", r"\1", text, flags=re.MULTILINE))
    assert msgspec.structs.replace(settings, rules_file=None) == load(tmp_path, "")


def test_the_commented_egresses_of_the_shipped_file_make_sense(tmp_path: Path) -> None:
    _, begin, rest = (CONFIG / "mta.toml").read_text().partition("# Addresses to send from.")
    text = begin + rest
    settings = load(tmp_path, re.sub(r"^# (\[|[a-z_0-9]+ = )", r"\1", text, flags=re.MULTILINE))
    assert set(settings.pools) == {"default", "newsletters"}


@pytest.mark.parametrize(
    ("mx", "rule"),
    [
        ("gmail-smtp-in.l.google.com", "google"),
        ("aspmx3.googlemail.com", "google"),
        ("mta5.am0.yahoodns.net", "yahoo"),
        ("mx1.mail.yahoo.co.jp", "yahoo-japan"),
        ("hotmail-com.olc.protection.outlook.com", "outlook"),
        ("example-com.mail.protection.outlook.com", "microsoft-365"),
        ("example-com.a-v1.mx.microsoft", "microsoft-365"),
        ("mx01.mail.icloud.com", "apple"),
        ("mx-ha02.web.de", "gmx-webde"),
        ("mx.example.com", "everybody"),
    ],
)
def test_the_shipped_rules_know_the_large_providers(mx: str, rule: str) -> None:
    assert load_rules(CONFIG / "mx-rules.toml").match(mx, 1).name == rule


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    settings = load(tmp_path, '[node]\njournal_dir = "journal"\n[rules]\nfile = "sub/r.toml"\n')
    assert settings.journal_dir == tmp_path / "journal"
    assert settings.rules_file == tmp_path / "sub" / "r.toml"


def test_the_environment_names_the_database_before_the_file_does(tmp_path: Path) -> None:
    text = '[database]\ndsn = "postgresql://file/mta"\n'
    assert load(tmp_path, text).database.dsn == "postgresql://file/mta"
    settings = load(tmp_path, text, {"MTA_DATABASE_URL": "postgresql://u:secret@env/mta"})
    assert settings.database.dsn == "postgresql://u:secret@env/mta"
    assert "secret" not in repr(settings)
    with pytest.raises(BadInput, match=r"^MTA_DATABASE_URL: expected postgresql://"):
        load(tmp_path, "", {"MTA_DATABASE_URL": "mysql://u:secret@env"})


def test_egresses_and_pools_arrive(tmp_path: Path) -> None:
    settings = load(tmp_path, TWO + '[pools]\ndefault = ["a", "b"]\nbulk = ["b"]\n')
    a, b = settings.egresses
    assert a == Egress("a", 1, "a.mail.example.com", source_ipv4="192.0.2.1")
    assert b == Egress("b", 2, "b.mail.example.com", source_ipv6="2001:db8::1", weight=5, include_domains=("*.com",))
    assert settings.pools["bulk"].egresses == (b,)
    assert load(tmp_path, TWO).pools["default"].egresses == (a, b)


def test_two_addresses_behind_one_public_address_share_its_id_and_name(tmp_path: Path) -> None:
    same = TWO.replace("id = 2", "id = 1")
    assert "differs from 'a.mail.example.com'" in refused(tmp_path, same)
    assert [e.id for e in load(tmp_path, same.replace("B.mail", "a.mail")).egresses] == [1, 1]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[mastr]\n", ":1: mastr: unknown key; did you mean 'master'?"),
        ("[master]\nlease = 5\n", ":2: master.lease: unknown key; did you mean 'lease_s'?"),
        ("master = 5\n", ":1: master: expected a table, got 5"),
        ("[master]\n\nlease_s = 'x'\n", ":3: master.lease_s: 'x' is not allowed; expected a number from 2 to 3,600"),
        ("[master]\nlease_s = nan\n", ":2: master.lease_s: nan is no finite number"),
        ("[master]\nclaim_parts_max = 0\n", ":2: master.claim_parts_max: 0 is not allowed; expected an integer"),
        ("[master]\nready_per_site_max = 200_000\n", ":2: master.ready_per_site_max: 200,000 is more than"),
        ("[children]\nbatch_recipients = 6000\n", ":2: children.batch_recipients: 6,000 is more than master."),
        ("[master]\nlease_s = 2\nwrite_delay_ms = 1000\n", ":3: master.write_delay_ms: must be below half"),
        ("[children]\ncount = 2.0\n", ":2: children.count: 2.0 is not allowed; expected an integer from 0 to 256"),
        ("[smtp]\nport = 65536\n", ":2: smtp.port: 65536 is not allowed; expected an integer from 1 to 65,535"),
        ("[node]\nname = 'a b'\n", ":2: node.name: 'a b' is not allowed; expected 1 to 64 letters"),
        ("[node]\njournal_dir = ''\n", ":2: node.journal_dir: '' is no path"),
        ("[database]\ndsn = 'postgresql://h/d?sslcompression=1'\n", ":2: database.dsn: sslcompression: "),
        ("[database]\ndsn = 'postgresql://h/d?connect_timeout=x'\n", ":2: database.dsn: connect_timeout: "),
        ("[database]\ndsn = 'secret'\n", ":2: database.dsn: expected postgresql://user@host:port/name"),
        ("[dns]\ntimeout_s = 0\n", ":2: dns.timeout_s: 0.0 is out of range"),
        ("[dns]\nttl_max_s = 60\n\nttl_min_s = 61\n", ":4: dns.ttl_min_s: 61 is more than"),
        ("[dns]\nnameservers = ['ns.example.com']\n", ":2: dns.nameservers: 'ns.example.com' is not an address"),
        ("[dns]\nallow_networks = ['10.0.0.1/8']\n", ":2: dns.allow_networks: '10.0.0.1/8' is not a network"),
        ("[dns]\nown_names = ['a b']\n", ":2: dns.own_names: 'a b' is not a domain name"),
        ("[egress]\nname = 'a'\n", ":1: egress: expected an array of tables; write [[egress]]"),
        ("[[egress]]\nname = 'a'\nid = 1\n", ":1: egress: the key 'helo' is missing; expected a string"),
        (TWO.replace("id = 2", "id = 0"), ":8: egress.id: 0 is not allowed; expected an integer from 1"),
        (TWO.replace('"b"', '"a"'), ":7: egress.name: 'a' is taken by the egress at"),
        (TWO.replace("192.0.2.1", "192.0.2.256"), ":5: egress.source_ipv4: '192.0.2.256' is not allowed;"),
        (TWO.replace("192.0.2.1", "2001:db8::1"), ":5: egress.source_ipv4: '2001:db8::1' is not allowed"),
        (TWO.replace("B.mail.example.com", "b mail"), ":9: egress.helo: 'b mail' is not allowed; expected a host name"),
        (TWO.replace("B.mail.example.com", "[1.2.3]"), ":9: egress.helo: '[1.2.3]' is not an address literal"),
        (TWO.replace("*.com", ".com"), ":12: egress.include_domains: '.com' can never fit"),
        (TWO.replace("weight = 5", "weight = 0"), ":11: egress.weight: 0 is not allowed; expected an integer from 1"),
        (TWO + "[pools]\nbulk = ['b']\n", ":13: pools: a pool named 'default' is needed"),
        (TWO + "[pools]\ndefault = ['c']\n", ":14: pools.default: no egress is named 'c'; known: a, b"),
        (TWO + "[pools]\ndefault = ['a', 'a']\n", ":14: pools.default: 'a' is in this pool already"),
        (TWO + "[pools]\ndefault = []\n", ":14: pools.default: a pool needs at least one egress"),
        (TWO + "[pools]\ndefault = 'a'\n", ":14: pools.default: 'a' is not allowed; expected an array, each a string"),
        (TWO + "[pools]\n'b c' = ['a']\n", ":14: pools.b c: 'b c' is not allowed as a name"),
        ("pools = []\n", ":1: pools: expected a table"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_line_and_what_is_allowed(
    tmp_path: Path, text: str, error: str
) -> None:
    assert refused(tmp_path, text).startswith(error)


def test_no_error_quotes_a_password(tmp_path: Path) -> None:
    assert "secret" not in refused(tmp_path, "[database]\ndsn = 'mysql://u:secret@h'\n")


def test_tls_is_checked_when_it_is_read(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = load(tmp_path, '[tls]\nca_file = "ca.pem"\nmta_sts_except = ["*.example.com"]\n')
    assert settings.tls == TlsSettings(ca_file=str(tmp_path / "ca.pem"), mta_sts_except=("*.example.com",))
    assert (load(tmp_path, "").tls.mta_sts, load(tmp_path, "").tls.dane) == (True, Dane.OFF)
    (tmp_path / "empty.pem").write_text("nothing\n")
    assert refused(tmp_path, '[tls]\nca_file = "gone.pem"\n').startswith(":2: tls.ca_file: ")
    assert "empty.pem cannot be used" in refused(tmp_path, '[tls]\nca_file = "empty.pem"\n')
    assert refused(tmp_path, '[tls]\nmta_sts_except = ["a b"]\n').startswith(":2: tls.mta_sts_except: 'a b'")
    assert refused(tmp_path, "[tls]\nmta_sts_port = 0\n").startswith(":2: tls.mta_sts_port: 0 is out of range")


def test_dane_goes_by_the_word_of_trusted_name_servers_only(tmp_path: Path) -> None:
    for server in ("127.0.0.53", "[::1]:5353"):
        assert load(tmp_path, f'[dns]\nnameservers = ["{server}"]\n[tls]\ndane = "on"\n').tls.dane is Dane.ON
    far = '[dns]\nnameservers = ["127.0.0.1", "192.0.2.53"]\n[tls]\ndane = '
    assert refused(tmp_path, far + '"on"\n').startswith(":4: tls.dane: 'on' takes the word")
    assert "192.0.2.53:53 is not" in refused(tmp_path, far + '"on"\n')
    assert load(tmp_path, far + '"trust_resolver"\n').tls.dane is Dane.TRUST_RESOLVER
    assert "expected one of 'off', 'on', 'trust_resolver'" in refused(tmp_path, far + "true\n")
