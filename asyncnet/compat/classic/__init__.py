"""The listings of a course in network programming, each in its own form, mended, and in a file of its own.

They are written to be read one by one: none uses the rest of the package, and each mend is a comment. Run them by
``python -m asyncnet classic NAME``.
"""

from __future__ import annotations

__all__: list[str] = []
