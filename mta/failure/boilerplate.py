"""What mail programs write around a diagnosis, taken away: it says that something failed, never what.

A mailer's prefix ("Recipient address rejected:"), its introduction ("Delivery to the following recipients failed"),
the footers of scanners and queues, and advice ("The usual cause is ...") stand in bounces of every kind. Left in
place, each was taken for the reason. Where nothing else is said, the text stays as it is, and codes decide.
"""

from __future__ import annotations

from typing import Final

import re2

_LETTERS_MIN: Final = 4  # of what is left, that says something
_MAIL: Final = r"(?:messages?|e-?mails?|mails?)"
_WHOM: Final = r"(?:recipients?|address(?:es)?)"
_PREFIXES: Final = (
    rf"\b(?:recipient|destination) (?:e-?mail )?{_WHOM} rejected: ",
    r"\b(?:host|server|mta|mx) \S+ (?:\[\S+\] |\(\S+\) )?(?:said|responded|replied)(?: with)?: ",
    r"\(in reply to (?:the )?(?:end of )?[a-z ]+(?:command)?\)",
)
_INTRODUCTIONS: Final = (
    rf"\b(?:the )?delivery (?:to|for) (?:the )?following {_WHOM}(?: (?:has|have|was|were|is|are))?"
    r"(?: (?:been|permanently|finally))?(?: (?:failed|unsuccessful|delayed|aborted))(?: permanently)?[.:]?",
    rf"\b(?:your|this|the|a) {_MAIL}(?: (?:that )?you sent)? (?:could ?n.t|could not|cannot|can.t|was not) be delivered"
    rf"(?: to (?:one or more of )?(?:(?:its|the|your|some) )?(?:of )?(?:(?:following|intended) )?{_WHOM})?[.:]?",
    rf"\bthe following {_WHOM} (?:had|have|has|was) (?:(?:permanent|transient|fatal|non-fatal|delivery) )*"
    r"(?:errors?|failures?|problems?|undeliverable)[.:]?",
    r"\bthis (?:is an automatically generated delivery status notification"
    rf"|{_MAIL} was (?:created|generated) automatically"
    r" by mail (?:delivery|transfer) (?:software|system|agent))[.:]?",
    r"\btechnical details of (?:permanent|temporary) failure:?",
    r"\bthis is a permanent error[.;,]?",
    r"\bi.ve given up[.;,]?",
    r"\bsorry it did ?n.t work out[.;,]?",
)
_FOOTERS: Final = (
    rf"\bi.m not going to try again[;,.]? this {_MAIL} has been in the queue too long[.]?",
    rf"\b(?:this|the|your) {_MAIL}(?: and any attachments?)? (?:has been|have been|was|is|were) (?:virus )?"
    r"(?:scanned|checked)\b(?:[^.]|[.]\S)*\b(?:virus(?:es)?|malware|spam|security|mailscanner|antivirus|content)[.]?",
    r"\b(?:scanned|checked) (?:for|by) (?:viruses|virus|malware|spam)\b[.]?",
)
# What mail programs think of failures in general is advice: causes that may not be the one of this failure.
_ADVICE: Final = re2.compile(
    r"(?i)\b(?:the |a |some |one )?(?:most )?(?:usual|common|possible|likely|typical|frequent)(?: \pL+){0,2}"
    r" (?:causes?|reasons?)\b(?:[^.]|[.]\S)*(?:[.]|$)"
)
_BOILERPLATE: Final = re2.compile("(?i)" + "|".join((*_PREFIXES, *_INTRODUCTIONS, *_FOOTERS)))
_LETTER: Final = re2.compile(r"\pL")


def without_boilerplate(text: str) -> str:
    """The text without what says nothing; as it is where nothing would be left, but for advice, which never counts.

    Time is linear in the text.
    """
    if _ADVICE.search(text) is not None:
        text = " ".join(_ADVICE.sub(" ", text).split())
    if len(text) < _LETTERS_MIN or _BOILERPLATE.search(text) is None:
        return text
    left = " ".join(_BOILERPLATE.sub(" ", text).split())
    return left if len(_LETTER.findall(left)) >= _LETTERS_MIN else text
