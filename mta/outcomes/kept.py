"""Marks of runs, and what is kept of journals after its commit.

A failover to an asynchronous standby, or a restore, makes a database forget what it had acknowledged. Whatever a node
recorded lately is then found in its ``kept/``: segments of the journal, named after the settlement with which the last
of them was recorded, ``<node>-<child>-<n>-<settlement>.journal``. So a file name says whether a database that knows a
run up to settlement N lacks any of it. Keeping costs one rename a segment, and the disk.

A run is known by its mark, ``<node>.run``: numbers of runs may be given out again by a database that lost some. The
time of that file is the end of the lease that the database has acknowledged last, by the database's clock.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from mta.outcomes.journal import JournalError, kept_path, put_away, runs_with_segments, segments_of

ALWAYS_NEEDED: Final = 1 << 62  # the settlement of what a database has never had
_KEPT = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)\.journal")
_MARK = re.compile(r"(\d+)\.run")


class RunMark(msgspec.Struct, frozen=True):
    """Which run it is. ``started_us`` 0: written by an older version, which did not say."""

    id: int
    name: str = ""
    boot_id: str = ""
    started_us: int = 0  # by the database's clock, in microseconds of Unix time
    epoch: int = 0  # of the database, when the run began or was reconciled last
    recorded: int = 0  # the last settlement acknowledged, where a run could still say so


class KeptSegment(NamedTuple):
    """A segment whose last outcome was recorded with ``settlement``."""

    settlement: int
    child: int
    number: int
    path: Path


def mark_path(directory: Path, node_id: int) -> Path:
    """The mark of a run: made before it claims anything; when it has ended or was recovered it goes to what is kept."""
    return directory / f"{node_id}.run"


def mark_run(directory: Path, node_id: int, mark: RunMark | None = None) -> None:
    """Makes or replaces the mark. JournalError: the directory cannot be written."""
    path = mark_path(directory, node_id)
    try:
        kept_path(directory).mkdir(mode=0o700, exist_ok=True)
        _write_whole(path, msgspec.json.encode(mark or RunMark(node_id)))
        if mark is not None:
            os.utime(path, (mark.started_us / 1e6, mark.started_us / 1e6))
    except OSError as error:
        raise JournalError(error.errno, f"cannot make {path}: {error.strerror}") from error


def _write_whole(path: Path, content: bytes) -> None:
    written = path.with_suffix(".new")
    written.write_bytes(content)
    written.chmod(0o600)
    written.replace(path)


def touch_mark(directory: Path, node_id: int, alive_until_s: float) -> None:
    """The database has acknowledged a lease of the run until this Unix time of its own."""
    with contextlib.suppress(OSError):  # a directory that cannot be written: the journal says so, where it matters
        os.utime(mark_path(directory, node_id), (alive_until_s, alive_until_s))


def marked_runs(directory: Path) -> set[int]:
    """The runs that keep, or kept, their journals here, and were not ended or recovered yet."""
    return set(_marks_in(directory))


def _marks_in(directory: Path) -> dict[int, Path]:
    if not directory.is_dir():
        return {}
    return {int(named[1]): path for path in directory.iterdir() if (named := _MARK.fullmatch(path.name))}


def local_runs(directory: Path) -> list[tuple[RunMark, float]]:
    """All runs that left anything here, also in what is kept, with the end of the last lease acknowledged; in order."""
    paths = {**_marks_in(kept_path(directory)), **_marks_in(directory)}
    return [(_read_mark(node_id, path), path.stat().st_mtime) for node_id, path in sorted(paths.items())]


def _read_mark(node_id: int, path: Path) -> RunMark:
    try:
        mark = msgspec.json.decode(path.read_bytes(), type=RunMark)
    except msgspec.MsgspecError:  # of an older version: empty
        return RunMark(node_id)
    return mark if mark.id == node_id else RunMark(node_id)


def runs_in(directory: Path) -> set[int]:
    """The runs that left anything here which is not put away."""
    return runs_with_segments(directory) | marked_runs(directory)


def remove_run(directory: Path, node_id: int, settlement: int = 0) -> None:
    """Nothing of this run is needed any more, up to ``settlement`` of it; 0: nor is any of it kept.

    The mark goes first: without it nobody believes the rest.
    """
    mark = mark_path(directory, node_id)
    if settlement:
        with contextlib.suppress(FileNotFoundError):
            mark.rename(kept_path(directory) / mark.name)
    mark.unlink(missing_ok=True)
    for path in segments_of(directory, node_id):
        put_away(path, settlement)
    for path in directory.glob(f"{node_id}-*.lock"):
        path.unlink(missing_ok=True)


def remark(directory: Path, mark: RunMark) -> None:
    """Replaces what a mark says, wherever it is, and leaves its time."""
    for path in (mark_path(directory, mark.id), mark_path(kept_path(directory), mark.id)):
        if path.exists():
            times = path.stat()
            _write_whole(path, msgspec.json.encode(mark))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def kept_segments(directory: Path, node_id: int | None = None) -> list[KeptSegment]:
    """What is kept (of one run), in the order in which it was recorded."""
    found = []
    if kept_path(directory).is_dir():
        for path in kept_path(directory).iterdir():
            named = _KEPT.fullmatch(path.name)
            if named and node_id in (None, int(named[1])):
                found.append(KeptSegment(int(named[4]), int(named[2]), int(named[3]), path))
    return sorted(found)


def dropped_up_to(directory: Path, node_id: int) -> int:
    """The settlement up to which segments of the run are not kept any more; 0: all are here since its start."""
    try:
        return int(_dropped_path(directory, node_id).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _dropped_path(directory: Path, node_id: int) -> Path:
    return kept_path(directory) / f"{node_id}.dropped"


def sweep_kept(directory: Path, now_unix_s: float, keep_s: float, bytes_max: int) -> int:
    """Removes what was kept for long enough, and the oldest of what is too much; how many bytes are left."""
    ages = []
    for segment in kept_segments(directory):
        stat = segment.path.stat()
        ages.append((stat.st_mtime, segment, stat.st_size))
    left = sum(size for _, _, size in ages)
    for kept_since_s, segment, size in sorted(ages):
        if now_unix_s - kept_since_s < keep_s and left <= bytes_max:
            break
        _drop(directory, segment)
        left -= size
    _sweep_marks(directory, now_unix_s, keep_s)
    return left


def _drop(directory: Path, segment: KeptSegment) -> None:
    node_id = _node_of(segment.path)
    if segment.settlement > dropped_up_to(directory, node_id):
        _write_whole(_dropped_path(directory, node_id), str(segment.settlement).encode())
    segment.path.unlink(missing_ok=True)


def _node_of(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _sweep_marks(directory: Path, now_unix_s: float, keep_s: float) -> None:
    """Marks of runs of which nothing is kept go too, but for the last: it says how far back this node remembers."""
    marks = _marks_in(kept_path(directory))
    needed = {_node_of(segment.path) for segment in kept_segments(directory)} | {max(marks, default=0)}
    for node_id, path in marks.items():
        if node_id not in needed and now_unix_s - path.stat().st_mtime >= keep_s:
            path.unlink(missing_ok=True)
            _dropped_path(directory, node_id).unlink(missing_ok=True)
