"""Every exception of the package.

    Exception
    └── AsyncnetError
        ├── AddressError (ValueError)         text that is no address, a port out of range
        ├── ClosedError (ConnectionError)     used after close, or closed while waiting
        ├── PacketError (ValueError)          bytes from the network that cannot be decoded
        ├── TftpError                         a transfer ended early; carries code and text
        │   ├── RemoteError                   the peer sent ERROR
        │   └── LocalError                    this side gave up, and told the peer so
        ├── EngineError (ValueError)          an engine that does not exist or cannot run here
        ├── ForeignAwaitError (RuntimeError)  a handler awaited what its engine cannot run
        └── MissingExtraError (ImportError)   an optional dependency is not installed

What the operating system reports stays what it is: ``OSError`` and its subclasses, with a message that names the
address and the way out, and ``TimeoutError``.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "AsyncnetError",
    "ClosedError",
    "EngineError",
    "ForeignAwaitError",
    "LocalError",
    "MissingExtraError",
    "PacketError",
    "RemoteError",
    "TftpError",
]


class AsyncnetError(Exception):
    """Base of every exception that the package defines."""


class AddressError(AsyncnetError, ValueError):
    """Text that is no address, or a port outside 0 to 65535."""


class ClosedError(AsyncnetError, ConnectionError):
    """The endpoint, connection or server was closed before or during the call."""


class PacketError(AsyncnetError, ValueError):
    """Bytes from the network that cannot be decoded; decoders raise nothing else."""


class TftpError(AsyncnetError):
    """A TFTP transfer ended early.

    Attributes:
        code: the error code of RFC 1350 section 5 and RFC 2347, 0 to 8.
        text: the message that goes with it.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.text} (TFTP error {self.code})"


class RemoteError(TftpError):
    """The peer ended the transfer with an ERROR packet."""


class LocalError(TftpError):
    """This side ended the transfer: the peer broke the protocol, or local storage failed."""


class EngineError(AsyncnetError, ValueError):
    """The engine does not exist, or cannot run on this system."""


class ForeignAwaitError(AsyncnetError, RuntimeError):
    """A handler awaited an object that belongs to another engine."""


class MissingExtraError(AsyncnetError, ImportError):
    """An optional dependency is missing.

    Args:
        feature: what needs it, as a phrase that starts a sentence.
        extra: the name of the extra that installs it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f'{feature} needs an optional package: pip install "asyncnet[{extra}]"')
        self.extra = extra
