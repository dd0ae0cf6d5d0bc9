"""Commands in processes of their own, without the second that each would take to load the program.

One process has loaded all modules of the command line. For each command it forks: a keeper, which forks the command
itself, waits for it, and tells its exit code even where a signal ended it. The command sees what it would see when an
operator typed it: its arguments, environment, directory, and files.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from typing import NoReturn

REQUEST_BYTES_MAX = 256 << 10
FILES = 4  # standard input, output and error; where the exit code is written


def serve(requests: socket.socket) -> None:
    """Until the other side is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        request, files, _, _ = socket.recv_fds(requests, REQUEST_BYTES_MAX, FILES)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _keep(request, files)
        for file in files:
            os.close(file)


def _keep(request: bytes, files: list[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, answer = files
    command = os.fork()
    if command == 0:
        os.close(answer)
        _become(json.loads(request), standard)
    for file in standard:
        os.close(file)
    os.write(answer, f"{command}\n".encode())
    _, status = os.waitpid(command, 0)
    os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, object], standard: list[int]) -> NoReturn:
    code: object = 1
    try:
        for number, file in enumerate(standard):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        os.chdir(request["directory"])  # type: ignore[arg-type]
        sys.argv = ["mta", *request["arguments"]]  # type: ignore[misc]
        importlib.import_module("mta.cli.main").main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    for _module in importlib.import_module("mta.cli.main").MODULES.values():
        importlib.import_module(_module)
    serve(socket.socket(fileno=int(sys.argv[1])))
