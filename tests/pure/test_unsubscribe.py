from __future__ import annotations

from typing import Any

import pytest

from mta.message import Content, ListUnsubscribe, RenderError, check_content, compile_content
from mta.model.errors import BadInput


def headers_of(wanted: ListUnsubscribe, *values: str) -> dict[bytes, bytes]:
    """The headers sent, unfolded."""
    fields = ["a", "b"][: len(values)]
    content = Content(sender="news@shop.example", subject="Hi", text="x", list_unsubscribe=wanted)
    renderer = compile_content(content, delivery_id=7, verp_key=bytes(32)).bind(fields)
    raw = b"".join(renderer.render("ann@example.com", "ref", values, 5, 1).segments)
    head = raw.partition(b"\r\n\r\n")[0].replace(b"\r\n ", b" ")
    lines = [line.partition(b": ") for line in head.split(b"\r\n")]
    return {name: text for name, _, text in lines if name.startswith(b"List-")}


def test_a_url_says_one_click_unless_it_is_told_not_to() -> None:
    url = "https://shop.example/u/{{reference}}?x={{a|url}}"
    there = {b"List-Unsubscribe": b"<https://shop.example/u/ref?x=1%202>"}
    assert headers_of(ListUnsubscribe(url), "1 2") == {
        **there,
        b"List-Unsubscribe-Post": b"List-Unsubscribe=One-Click",
    }
    assert headers_of(ListUnsubscribe(url, one_click=False), "1 2") == there


def test_a_mailbox_can_stand_alone_or_behind_the_url() -> None:
    mailto = "leave@shop.example?subject={{a|url}}"
    assert headers_of(ListUnsubscribe(mailto=mailto), "a b") == {
        b"List-Unsubscribe": b"<mailto:leave@shop.example?subject=a%20b>"
    }
    both = headers_of(ListUnsubscribe("{{a}}", "u-{{b}}@shop.example"), "https://x.example/?a=1,2", "7")
    assert both[b"List-Unsubscribe"] == b"<https://x.example/?a=1,2>, <mailto:u-7@shop.example>"


@pytest.mark.parametrize(
    "value",
    ["http://x.example/", "javascript:x", "", "https://x.example/a b", "https://x.example/>,<https://eve.example", "é"],
)
def test_a_value_that_is_no_https_url_fails_its_recipient(value: str) -> None:
    with pytest.raises(RenderError):
        headers_of(ListUnsubscribe("{{a}}"), value)


@pytest.mark.parametrize(
    ("wanted", "place", "what"),
    [
        (ListUnsubscribe(), "", "has neither url nor mailto"),
        (ListUnsubscribe("http://shop.example/"), ".url", "is no https URL"),
        (ListUnsubscribe("https:///x"), ".url", "is no https URL"),
        (ListUnsubscribe("https://shop.example/ x"), ".url", "is no https URL"),
        (ListUnsubscribe("https://bücher.example/"), ".url", "is no https URL"),
        (ListUnsubscribe("https://a.example>,<https://b.example"), ".url", "is no https URL"),
        (ListUnsubscribe("https://shop.example/\r\nX: y"), ".url", "a carriage return"),
        (ListUnsubscribe("https://shop.example/{{a|raw}}"), ".url", "for the HTML part only"),
        (ListUnsubscribe("https://shop.example/{{a b}}"), ".url", "no field name"),
        (ListUnsubscribe("x" * 3000), ".url", "3000 characters"),
        (ListUnsubscribe(""), ".url", "0 characters"),
        (ListUnsubscribe(mailto="leave"), ".mailto", "has no @"),
        (ListUnsubscribe(mailto="leave@shop.example?a b"), ".mailto", "is no mailbox"),
        (ListUnsubscribe(mailto="mailto:leave@shop.example"), ".mailto", "the character :"),
    ],
)
def test_what_cannot_be_an_unsubscription_is_refused_with_its_place(
    wanted: ListUnsubscribe, place: str, what: str
) -> None:
    changes: dict[str, Any] = {"list_unsubscribe": wanted}
    with pytest.raises(BadInput) as refused:
        check_content(Content(sender="news@shop.example", subject="Hi", text="x", **changes), None)
    assert refused.value.where == f"content.list_unsubscribe{place}"
    assert what in refused.value.what


def test_the_headers_cannot_be_set_by_hand_too() -> None:
    content = Content(
        sender="news@shop.example",
        subject="Hi",
        text="x",
        headers={"list-unsubscribe": "<https://x.example>"},
        list_unsubscribe=ListUnsubscribe("https://shop.example/u"),
    )
    with pytest.raises(BadInput) as refused:
        check_content(content, None)
    assert refused.value.where == "content.headers.list-unsubscribe"


def test_a_field_used_only_here_is_a_field_of_the_content() -> None:
    content = Content(
        sender="news@shop.example",
        subject="Hi",
        text="x",
        list_unsubscribe=ListUnsubscribe("https://shop.example/{{token|url}}"),
    )
    assert check_content(content, None) == {"token"}
    with pytest.raises(BadInput, match=r"content\.list_unsubscribe: the field token is not known"):
        check_content(content, [])
