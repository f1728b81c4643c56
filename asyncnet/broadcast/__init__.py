"""Broadcast: `ask` everybody on the network, `answer` those who ask, `announce` a service, `browse` for one."""

from asyncnet.broadcast.announcing import DISCOVERY_PORT, Announcer, AnnouncerStats, announce
from asyncnet.broadcast.answering import Answerer, AnswererStats, AnswerHandler, answer
from asyncnet.broadcast.asking import Asking, AskStats, Reply, ask
from asyncnet.broadcast.browsing import Browser, BrowserStats, Browsing, browse
from asyncnet.broadcast.roster import Event, EventKind, Location, Peer, RosterStats
from asyncnet.broadcast.ways import Way, WayReport

__all__ = [
    "DISCOVERY_PORT",
    "Announcer",
    "AnnouncerStats",
    "AnswerHandler",
    "Answerer",
    "AnswererStats",
    "AskStats",
    "Asking",
    "Browser",
    "BrowserStats",
    "Browsing",
    "Event",
    "EventKind",
    "Location",
    "Peer",
    "Reply",
    "RosterStats",
    "Way",
    "WayReport",
    "announce",
    "answer",
    "ask",
    "browse",
]
