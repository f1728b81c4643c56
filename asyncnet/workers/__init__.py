"""N processes behind one address: a supervisor for every server of the package, TCP and UDP, and for a user's own."""

from asyncnet.workers.child import Worker
from asyncnet.workers.recycling import Recycle
from asyncnet.workers.running import run

__all__ = ["Recycle", "Worker", "run"]
