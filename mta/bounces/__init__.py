"""Mail that comes back, read: bounces, automatic answers, complaints. Pure: octets in, a report out.

What may be believed is decided here too: only the outer report speaks of a recipient. The message that it returns,
and whatever reports are in that, are somebody's text and decide nothing. Any octets are read in bounded time and
memory, and none of them raise.
"""

from mta.bounces.letter import Kind, Letter, Recipient
from mta.bounces.reader import read_letter

__all__ = ["Kind", "Letter", "Recipient", "read_letter"]
