"""Broadcast: `ask` everybody on the network, and `answer` those who ask."""

from asyncnet.broadcast.service import Answerer, AnswererStats, AnswerHandler, Reply, answer, ask

__all__ = ["AnswerHandler", "Answerer", "AnswererStats", "Reply", "answer", "ask"]
