"""No image of this process on disk: it holds private keys, passwords and addresses."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # prctl(2)


def forbid_dumps() -> None:
    """No core dump of this process from here on, nor may others of its user read its memory. Not inherited by exec.

    Both: the limit is not asked where a program takes the dumps (core(5)), and the flag is undone by exec.
    Raises OSError when the system refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
