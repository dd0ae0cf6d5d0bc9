"""What an operator can set about whom to believe: certificates, MTA-STS, DANE."""

from __future__ import annotations

import enum

import msgspec

from mta.model.errors import BadInput
from mta.model.masks import mask_fault

# TLSA records of a host (RFC 6698 §2.1): usage, selector, matching type, data.
Authorities = tuple[tuple[int, int, int, bytes], ...]


class Dane(enum.StrEnum):
    """Whose word that an answer is signed is taken (its AD bit; RFC 7672 §2.1.1)."""

    OFF = "off"
    ON = "on"  # that of name servers on this machine; with others a start is refused
    TRUST_RESOLVER = "trust_resolver"  # that of all name servers: nobody can come between them and us


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[tls]``; refused with ``BadInput`` when it makes no sense.

    ``ca_file``: PEM certificates of the authorities that are trusted; empty: those of the system.
    ``mta_sts_except``: masks of recipient domains that are not asked for a policy.
    ``mta_sts_port``: of policy servers; other than 443 in tests only (RFC 8461 §3.3 knows no other).
    """

    ca_file: str = ""
    mta_sts: bool = True
    mta_sts_except: tuple[str, ...] = ()
    mta_sts_port: int = 443
    dane: Dane = Dane.OFF

    def __post_init__(self) -> None:
        if not 0 < self.mta_sts_port < 65_536:
            raise BadInput("tls.mta_sts_port", f"{self.mta_sts_port} is out of range; allowed is 1 to 65535")
        for mask in self.mta_sts_except:
            fault = mask_fault(mask)
            if fault is not None:
                raise BadInput("tls.mta_sts_except", fault)
