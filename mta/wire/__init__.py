"""What master and child say to each other, and how it is framed.

One socketpair a child. A frame is a length, then one MessagePack value of a tagged union; rows of recipients
travel inside as the JSON they were stored as, so the master never looks into merge values.
"""

from mta.wire.frames import (
    Batch,
    BatchPart,
    ChildFrame,
    ChildOptions,
    Close,
    Committed,
    Drain,
    Forget,
    FrameSplitter,
    Health,
    JournalState,
    Lease,
    MasterFrame,
    Open,
    Opened,
    OpenFailed,
    Outcome,
    Recall,
    Report,
    SessionClosed,
    Template,
    decode_child_frame,
    decode_master_frame,
    encode_frame,
)

__all__ = [
    "Batch",
    "BatchPart",
    "ChildFrame",
    "ChildOptions",
    "Close",
    "Committed",
    "Drain",
    "Forget",
    "FrameSplitter",
    "Health",
    "JournalState",
    "Lease",
    "MasterFrame",
    "Open",
    "OpenFailed",
    "Opened",
    "Outcome",
    "Recall",
    "Report",
    "SessionClosed",
    "Template",
    "decode_child_frame",
    "decode_master_frame",
    "encode_frame",
]
