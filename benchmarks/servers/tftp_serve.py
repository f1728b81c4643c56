"""Python's TFTP servers behind one command line: ``tftp_serve.py NAME DIR`` on a free port of 127.0.0.1."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def serve_tftpy(root: str, port: int) -> None:
    import tftpy

    tftpy.TftpServer(root).listen(HOST, port)


def serve_partftpy(root: str, port: int) -> None:
    from partftpy.TftpServer import TftpServer

    TftpServer(root).listen(HOST, port)


def serve_fbtftp(root: str, port: int) -> None:
    from fbtftp.base_handler import BaseHandler, ResponseData
    from fbtftp.base_server import BaseServer

    class File(ResponseData):
        def __init__(self, path: str) -> None:
            self._size = os.stat(path).st_size
            self._file = open(path, "rb")  # noqa: SIM115

        def read(self, n: int) -> bytes:
            return self._file.read(n)

        def size(self) -> int:
            return self._size

        def close(self) -> None:
            self._file.close()

    class Handler(BaseHandler):
        def __init__(self, server_addr: Any, peer: Any, path: str, options: Any) -> None:
            super().__init__(server_addr, peer, path, options, lambda stats: None)

        def get_response_data(self) -> File:
            return File(os.path.join(root, self._path))

    class Server(BaseServer):
        def get_handler(self, server_addr: Any, peer: Any, path: str, options: Any) -> Handler:
            return Handler(server_addr, peer, path, options)

    Server(HOST, port, 3, 5).run()


def serve_py3tftp(root: str, port: int) -> None:

    os.chdir(root)
    sys.argv = ["py3tftp", "--host", HOST, "-p", str(port)]
    from py3tftp.__main__ import main

    main()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    name, root = sys.argv[1:]
    port = free_port()
    print(f"listening on {HOST}:{port}", file=sys.stderr, flush=True)
    globals()[f"serve_{name}"](root, port)
