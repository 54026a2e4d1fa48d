"""What a request may fail of before any operation is made of it."""

from __future__ import annotations

from quorumq.node.machine.refusals import Refusal


class Invalid(Exception):
    """A request that its route cannot accept; the message is for the client."""

    def __init__(self, message: str, status: int = 400, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Hidden(Exception):
    """What was asked for is there and not for this sender; `refusal` is what he is told."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
