"""docs/failures.md on updates, indicators and alarms, against the code."""

from __future__ import annotations

import re
from pathlib import Path

from mta.bundle.fetch import FETCH_S_MAX, REDIRECTS_MAX
from mta.bundle.form import BUNDLE_BYTES_MAX, FORM, Manifest
from mta.keeper.updating import AGAIN
from mta.model.failure import OUR_FAULT
from mta.queue import indicators
from mta.queue.faults import OF_SENDER, QUIET, WINDOWS_MIN, FaultBounds
from mta.settings import load_settings
from mta.settings.deliverability import DeliverabilitySettings
from mta.settings.shipped import NAMES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "failures.md").read_text()
UPDATE = TEXT[TEXT.index("## Deliverability update") :].partition("\n## ")[0]
FIGURES = TEXT[TEXT.index("## Indicators and alarms") :].partition("\n## ")[0]


def rows(part: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", part, re.M)]


def test_every_key_of_updates_has_its_row_with_its_default() -> None:
    defaults = DeliverabilitySettings()
    told = {row[0].strip("`"): row[2] for row in rows(UPDATE)[2:]}
    assert set(told) == set(DeliverabilitySettings.__struct_fields__)
    assert told["daily_at"] == f'`"{defaults.daily_at}"`'
    assert (told["enabled"], defaults.enabled) == ("`false`", False)


def test_the_example_of_settings_is_in_order(tmp_path: Path) -> None:
    for number, part in enumerate((UPDATE, FIGURES)):
        example = re.search(r"```toml\n(.*?)```", part, re.DOTALL)
        assert example is not None
        (tmp_path / "mta.toml").write_text(example[1])
        found = load_settings(tmp_path / "mta.toml", environment={}, host_name="h")
        if number == 0:
            assert found.deliverability.enabled
        else:
            assert found.alarms == FaultBounds()  # what it shows are the defaults


def test_bounds_of_fetching_and_the_form_are_those_of_the_code() -> None:
    assert f"at most {REDIRECTS_MAX} redirects" in UPDATE
    assert f"{BUNDLE_BYTES_MAX >> 20} MB, a minute" in UPDATE
    assert (FETCH_S_MAX, AGAIN.total_seconds()) == (60, 3_600)
    assert f"`{FORM}`" in UPDATE
    assert all(f"`{name}`" in UPDATE for name in (*NAMES, *Manifest.__struct_fields__))


def test_figures_of_indicators_are_those_of_the_code() -> None:
    told = {row[0]: row for row in rows(FIGURES)}
    assert told["hard"][3] == f"above {indicators.HARD_PERCENT:g} %"
    assert told["soft"][3] == f"above {indicators.SOFT_PERCENT:g} %"
    assert told["complaints"][3] == (
        f"above {indicators.COMPLAINT_PERCENT:g} %, and above {indicators.COMPLAINT_PERCENT_BAD:g} %"
    )
    assert set(re.findall(r"`(\w+)`", told["soft"][1])) == {one.name.lower() for one in indicators.SOFT}
    assert set(re.findall(r"`(\w+)`", told["hard"][1])) == {one.name.lower() for one in indicators.HARD}
    assert f"may be {indicators.SINCE_MAX.days} days" in FIGURES
    assert f"with {indicators.SENT_MIN} sent or more" in FIGURES


def test_every_fault_of_ours_has_its_advice_and_windows_are_those_of_the_code() -> None:
    advice = {name for row in rows(FIGURES) for name in re.findall(r"`(\w+)`", row[0])}
    assert {one.label for one in OUR_FAULT} <= advice
    of_sender = re.search(r"about the sender\n\((.*?)\)", FIGURES, re.DOTALL)
    assert of_sender is not None
    assert set(re.findall(r"`(\w+)`", of_sender[1])) == {one.label for one in OF_SENDER}
    assert "the last {} and {} minutes".format(*WINDOWS_MIN) in FIGURES
    assert QUIET.total_seconds() == 3_600
