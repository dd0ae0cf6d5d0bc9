from __future__ import annotations

from typing import Any

import pytest

from mta.message import Content, Format, Structure, check_content
from mta.message.formats import FormatChooser
from mta.model.errors import BadInput

BOTH = {"text": "x", "html": "y"}


@pytest.mark.parametrize(
    ("bodies", "formats", "where", "what"),
    [
        (BOTH, [Format(["a.example"], Structure.TEXT)] * 101, "content.formats", "are 101, 100 are allowed"),
        (BOTH, [Format(["a.example"] * 1001, Structure.TEXT)], "content.formats", "have 1001 masks"),
        (BOTH, [Format([], Structure.TEXT)], "content.formats[0].domains", "would fit no recipient"),
        (BOTH, [Format(["a", "@b"], Structure.TEXT)], "content.formats[0].domains[1]", "a mask holds"),
        (BOTH, [Format(["bücher.example"], Structure.TEXT)], "content.formats[0].domains[0]", "A-label"),
        (BOTH, [Format(["x" * 9999], Structure.TEXT)], "content.formats[0].domains[0]", "too long"),
        ({"html": "y"}, [Format(["*"], Structure.TEXT)], "content.formats[0].structure", "the content has none"),
        ({"text": "x"}, [Format(["*"], Structure.HTML)], "content.formats[0].structure", "the content has none"),
    ],
)
def test_a_format_that_cannot_be_kept_is_refused_with_its_place(
    bodies: dict[str, str], formats: list[Format], where: str, what: str
) -> None:
    changes: dict[str, Any] = {**bodies, "formats": formats}
    with pytest.raises(BadInput) as refused:
        check_content(Content(sender="news@shop.example", subject="Hi", **changes), None)
    assert refused.value.where == where
    assert what in refused.value.what


def test_the_first_format_that_fits_counts_and_case_does_not() -> None:
    chooser = FormatChooser([Format(["mail.example"], Structure.HTML), Format(["*.EXAMPLE", "?.test"], Structure.TEXT)])
    expected = {
        "a@mail.example": Structure.HTML,
        "a@MAIL.example": Structure.HTML,
        "a@other.example": Structure.TEXT,
        "a@mail.example.net": Structure.MULTIPART,
        "a@x.test": Structure.TEXT,
        "a@xx.test": Structure.MULTIPART,
        '"a@mail.example"@b.net': Structure.MULTIPART,
        "a@[192.0.2.1]": Structure.MULTIPART,
    }
    for _ in range(2):
        assert {address: chooser.structure_for(address) for address in expected} == expected


def test_many_domains_do_not_grow_what_is_kept_beyond_its_bound() -> None:
    chooser = FormatChooser([Format(["d7.example"], Structure.TEXT)])
    found = [chooser.structure_for(f"a@d{number}.example") for number in range(10_050)]
    assert found.count(Structure.TEXT) == 1
    assert len(chooser._found) <= 10_000
    assert chooser.structure_for("a@d7.example") is Structure.TEXT
