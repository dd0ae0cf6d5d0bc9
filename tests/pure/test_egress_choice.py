from __future__ import annotations

from collections import Counter

import pytest

from mta.model.egress import Egress, EgressPool
from mta.traffic.egress import EgressChooser, eligible


def egress(name: str, weight: int = 1, **masks: tuple[str, ...]) -> Egress:
    return Egress(name=name, id=ord(name), helo=f"{name}.example.com", weight=weight, **masks)


A, B, C = egress("a", 5), egress("b", 5), egress("c", 1)


def shares(chooser: EgressChooser, picks: int, **kwargs: object) -> dict[str, float]:
    counts = Counter(chooser.choose("example.com", **kwargs).name for _ in range(picks))  # type: ignore
    return {name: 100 * count / picks for name, count in counts.items()}


def test_weights_five_five_one_carry_45_45_and_10_percent() -> None:
    found = shares(EgressChooser(EgressPool("p", (A, B, C))), 1100)
    assert found == pytest.approx({"a": 45.45, "b": 45.45, "c": 9.1}, abs=0.5)


def test_when_one_is_unavailable_the_others_share_83_to_17() -> None:
    found = shares(EgressChooser(EgressPool("p", (A, B, C))), 1200, blocked=[A])
    assert found == pytest.approx({"b": 83.3, "c": 16.7}, abs=0.5)


def test_when_one_is_excluded_the_others_share_83_to_17() -> None:
    excluding = egress("a", 5, exclude_domains=("*.com",))
    found = shares(EgressChooser(EgressPool("p", (excluding, B, C))), 1200)
    assert found == pytest.approx({"b": 83.3, "c": 16.7}, abs=0.5)


def test_even_a_few_choices_are_spread_evenly() -> None:
    chooser = EgressChooser(EgressPool("p", tuple(egress(n) for n in "abcd")))
    names = [chooser.choose("x.example").name for _ in range(40)]  # type: ignore[union-attr]
    for start in range(0, 33):
        assert max(Counter(names[start : start + 8]).values()) <= 3


@pytest.mark.parametrize("sites", [2, 3, 4, 8, 11])
def test_sites_that_take_turns_each_get_all_weights(sites: int) -> None:
    chooser = EgressChooser(EgressPool("p", (A, B, C)))
    counts = [Counter[str]() for _ in range(sites)]
    for i in range(sites * 550):
        counts[i % sites][chooser.choose(f"site{i % sites}.example").name] += 1  # type: ignore[union-attr]
    for count in counts:
        assert count["a"] == pytest.approx(250, abs=15)
        assert count["c"] == pytest.approx(50, abs=15)


def test_include_then_exclude_decides_who_may_carry_a_domain() -> None:
    only_com = egress("a", include_domains=("*.com", "example.net"))
    not_example = egress("b", include_domains=("*.com",), exclude_domains=("EXAMPLE.com", "?.example.com"))
    everything = egress("c")
    pool = EgressPool("p", (only_com, not_example, everything))

    def names(domain: str) -> str:
        return "".join(e.name for e in eligible(pool, domain))

    assert names("other.com") == "abc"
    assert names("Example.COM.") == "ac"
    assert names("x.example.com") == "ac"
    assert names("example.net") == "ac"
    assert names("example.org") == "c"


def test_nobody_eligible_or_available_is_none() -> None:
    chooser = EgressChooser(EgressPool("p", (egress("a", include_domains=("*.com",)),)))
    assert chooser.choose("example.org") is None
    assert chooser.choose("example.com", list(chooser.pool.egresses)) is None
    assert EgressChooser(EgressPool("empty", ())).choose("example.com") is None


def test_what_is_remembered_of_domains_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.traffic.egress._CACHED_DOMAINS_MAX", 10)
    chooser = EgressChooser(EgressPool("p", (A, B)))
    for i in range(100):
        chooser.eligible(f"d{i}.example")
    assert len(chooser._eligible) <= 10


def test_a_chooser_of_one_egress_knows_its_masks_and_no_other() -> None:
    chooser = EgressChooser(EgressPool("p", (egress("a", 5, exclude_domains=("*.com",)), B, C)))
    assert shares(chooser.only("b"), 10) == {"b": 100.0}
    assert chooser.only("b") is chooser.only("b")
    assert chooser.only("a").choose("example.com") is None
    assert chooser.only("gone") is chooser
