"""Errors by the party at fault: somebody's input, the remote server, the link, ourselves."""

from __future__ import annotations


class BadInput(ValueError):  # noqa: N818 - a name that reads as the sentence it prints
    """Something handed to us from outside cannot be used; nothing was changed by it.

    ``where`` names the place (``file:line``, ``row 17``, ``delivery.content.subject``),
    ``what`` says what is wrong there and, where there is a choice, what is allowed.
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


class RemoteProtocolError(Exception):
    """The remote server broke the rules of SMTP; nothing more may be sent on that session."""


class LocalFault(Exception):  # noqa: N818 - our own bug, not an "error" to be handled
    """A state that cannot be. The unit that raised it must end, and its work be recovered."""
