"""What is sent: a delivery's content, compiled once, rendered for each recipient.

In charge of the content's shape and checks (``content``; ``attached``, ``formats`` and ``unsubscribe`` for those of
its keys), the language of merge fields (``fields``), header lines (``headers``, RFC 5322, RFC 2047),
quoted-printable bodies (``quoted``, RFC 2045 §6.7), MIME structure (``mime``), text with gaps (``layout``) and what
goes into them (``values``), the compiled template (``template``), the message of one recipient (``render``), its DKIM
signatures (``dkim`` has keys and signers, ``keyring`` whose they are, ``signing`` the signatures made while rendering)
and return paths that can be told from forgeries (``verp``).

Guarantees, for any content that passed its checks and any values whatever:

- a message has CRLF and no other CR or LF, no line over 998 octets, no line that starts with a dot, and
  ends with CRLF: the same octets go out by DATA without dot stuffing, and by BDAT;
- all of it is 7-bit, except the address in ``To`` when its local part is not ASCII (RFC 6531);
- a value is never a template, adds no header and no line of a header, and is escaped where it stands;
- the same recipient rendered again gives the same octets, ``Date``, ``Message-ID`` and signatures included;
- a template compiled with signers gives no message without its signatures, and they are over what is sent.

Owns no state but what a template or renderer computed at its making. Never does I/O, never reads a clock,
never guesses at a value that cannot be encoded: that recipient fails, with the field's name. Never shows a key.
"""

from mta.message.attached import Attachment, InlineImage
from mta.message.content import Content, check_content, load_content
from mta.message.dkim import Signer, SigningKey, load_key
from mta.message.fields import RenderError
from mta.message.formats import Format, Structure
from mta.message.keyring import KeyRing, RingEntry, sender_domain, sender_domain_of
from mta.message.render import Rendered, Renderer
from mta.message.template import Template, compile_content
from mta.message.unsubscribe import ListUnsubscribe
from mta.message.verp import parse_verp

__all__ = [
    "Attachment",
    "Content",
    "Format",
    "InlineImage",
    "KeyRing",
    "ListUnsubscribe",
    "RenderError",
    "Rendered",
    "Renderer",
    "RingEntry",
    "Signer",
    "SigningKey",
    "Structure",
    "Template",
    "check_content",
    "compile_content",
    "load_content",
    "load_key",
    "parse_verp",
    "sender_domain",
    "sender_domain_of",
]
