"""Frames between master and child: whole, in pieces, and refused where they cannot be right."""

from __future__ import annotations

import struct

import msgspec
import pytest

from mta.model.errors import LocalFault
from mta.model.limits import FRAME_BYTES_MAX
from mta.wire import (
    Batch,
    BatchPart,
    Drain,
    FrameSplitter,
    Lease,
    Outcome,
    Report,
    decode_child_frame,
    decode_master_frame,
    encode_frame,
)

BATCH = Batch(
    7, 3, 1, ("first",), [BatchPart(9, 1, 1_700_000_000, [0, 2], [65536, 65538])], b'[["a@b.test",null,["A"]]]'
)
REPORT = Report(4, [Outcome(7, 9, "rule|1", delivered=[0], returned=[2])], b"line\n")


def test_a_frame_comes_back_as_it_went() -> None:
    [body] = FrameSplitter().feed(encode_frame(BATCH))
    assert decode_master_frame(body) == BATCH
    [body] = FrameSplitter().feed(encode_frame(REPORT))
    assert decode_child_frame(body) == REPORT


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1000])
def test_frames_come_out_whole_however_the_stream_is_cut(step: int) -> None:
    stream = b"".join(encode_frame(frame) for frame in (BATCH, Lease(1.5), Drain(), BATCH))
    splitter = FrameSplitter()
    bodies = [body for at in range(0, len(stream), step) for body in splitter.feed(stream[at : at + step])]
    assert [decode_master_frame(body) for body in bodies] == [BATCH, Lease(1.5), Drain(), BATCH]


def test_a_length_over_the_bound_is_our_own_fault() -> None:
    with pytest.raises(LocalFault, match="over the bound"):
        FrameSplitter().feed(struct.pack("!I", FRAME_BYTES_MAX + 1))


def test_a_frame_of_the_other_direction_is_not_taken_for_ours() -> None:
    [body] = FrameSplitter().feed(encode_frame(REPORT))
    with pytest.raises(msgspec.ValidationError):
        decode_master_frame(body)
