"""Commands in processes of their own, without the second that each would take to load the program.

One process has loaded all modules of the command line and of the sink. For each command it forks: a keeper, which
forks the command itself, waits for it, and tells its exit code even where a signal ended it. The command sees what it
would see when an operator typed it: its arguments, environment, directory, and files.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from typing import Annotated, NoReturn

import typer

REQUEST_BYTES_MAX = 256 << 10
FILES_MAX = 32  # where the exit code is written, standard input, output and error, then others
BEYOND = 512  # no file of ours has a number like this


def serve(requests: socket.socket) -> None:
    """Until the other side is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        request, files, _, _ = socket.recv_fds(requests, REQUEST_BYTES_MAX, FILES_MAX)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _keep(request, files)
        for file in files:
            os.close(file)


def _keep(request: bytes, files: list[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    answer, *given = files
    command = os.fork()
    if command == 0:
        os.close(answer)
        _become(json.loads(request), given)
    for file in given:
        os.close(file)
    os.write(answer, f"{command}\n".encode())
    _, status = os.waitpid(command, 0)
    os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, object], given: list[int]) -> NoReturn:
    code: object = 1
    try:
        # All of them out of the way first: one may have the number that another is to get.
        moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, BEYOND) for file in given]
        for file in given:
            os.close(file)
        for file, number in zip(moved, request["numbers"], strict=True):  # type: ignore[call-overload]
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        os.chdir(request["directory"])  # type: ignore[arg-type]
        sys.argv = ["mta", *request["arguments"]]  # type: ignore[misc]
        code = importlib.import_module(str(request["module"])).main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _load() -> None:
    """What any command needs, once for all of them; forked processes share it as long as nobody writes to it."""
    for module in importlib.import_module("mta.cli.main").MODULES.values():
        importlib.import_module(module)
    importlib.import_module("mta.sink.__main__")
    # Typer loads the larger part of itself when the first command with an argument is called.
    app = typer.Typer(add_completion=False)
    app.command()(_nothing)
    app(["1"], standalone_mode=False)
    gc.collect()
    gc.freeze()


def _nothing(number: Annotated[int, typer.Argument()]) -> None:
    assert number == 1


if __name__ == "__main__":
    _load()
    serve(socket.socket(fileno=int(sys.argv[1])))
