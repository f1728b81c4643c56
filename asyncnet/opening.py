"""One way to open everything: ``await opening`` or ``async with opening as thing``.

``udp.bind``, ``udp.connect``, ``tcp.serve``, ``tftp.serve`` and ``broadcast.answer`` are plain functions that return an
`Opening`. Awaited, it gives the open object, which the caller closes; as an async context manager it closes it too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Opening"]


class AsyncClosable(Protocol):
    """Anything with a coroutine method ``aclose``."""

    async def aclose(self) -> object: ...


T = TypeVar("T", bound=AsyncClosable)


class Opening(Generic[T]):
    """The open object to come.

    Args:
        open_: called once, when awaited or entered; it returns the open object.
    """

    def __init__(self, open_: Callable[[], Awaitable[T]]) -> None:
        self._open = open_
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._open().__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()
