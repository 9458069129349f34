"""The portal and the mail server of a run: each follows a seeded script, and may trigger the run's fault."""

import email
import email.policy
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from tests.chaos.database_proxy import Trigger
from tests.chaos.faults import PHASES, MailFault, Spot, When
from tests.support import portal_answers as answers
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, error
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import Answer, ScriptedServer, ServerFault

APPLYING: dict[str, Behaviour] = {
    "ok": answers.confirm,
    "slow": answers.delay(0.15, answers.confirm),
    "200, but the answer is cut": answers.cut(applied=False),
    "500 after applying": error(500, "internal"),
    "reset after applying": answers.reset(),
}
"""Answers after the portal has applied the request."""
NOT_APPLYING: dict[str, Behaviour] = {
    "502": error(502, "dynamics_unavailable"),
    "429 with seconds": error(429, "throttled", retry_after="1"),
    "429 for 15 minutes": error(429, "throttled", retry_after="900"),
    "reset": answers.reset(),
    "hang": answers.hang(),
    "401": error(401, "unauthorized"),
}


class ChaosPortal(PortalServer):
    """The portal. It applies a key once."""

    def __init__(self) -> None:
        super().__init__(self._decide)
        self.applied: dict[UUID | None, list[tuple[int, int]]] = defaultdict(list)
        """The applied events with their versions, by contact, in order."""
        self.begin()

    def begin(self, script: Sequence[str] = (), trigger: Trigger | None = None) -> None:
        """Follow this script from now on, then be healthy."""
        with self.changed:
            self._script, self._trigger = list(script), trigger or Trigger()

    def _decide(self, request: PortalRequest) -> Behaviour:
        if request.method == "GET":
            return answers.ok()
        name = self._script.pop(0) if self._script else "ok"
        moment = self._trigger.reach(Spot.REQUEST)

        def behave(exchange: Exchange) -> None:
            moment(When.BEFORE)
            with self.changed:
                applied = self.applied[request.contact_id]
                if name in APPLYING and request.order not in applied:
                    applied.append(request.order)
                    exchange.apply()
            moment(When.AFTER)
            (APPLYING | NOT_APPLYING)[name](exchange)
            moment(When.ANSWERED)

        return behave


REPEAT_LINE = "You may have received this reminder before"
_ANSWERS: dict[str, Answer] = {
    "dropped": ServerFault.CUT,
    "silent": ServerFault.HANG,
    "garbage": b"\x16\x03\x01 what is this?",
    "450": b"450 later",
    "421": b"421 closing",
}


class Received(NamedTuple):
    """One reminder that the mail server took."""

    to: str
    message_id: str
    says_repeat: bool


class ChaosMailServer(ScriptedServer):
    """The mail server. It reads each reminder that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Received] = []
        self._lock = threading.Lock()
        self.begin()

    def begin(self, script: Sequence[MailFault] = (), trigger: Trigger | None = None) -> None:
        """Follow this script from now on, then be healthy."""
        with self._lock:
            self.script, self._trigger = list(script), trigger or Trigger()

    def answer(self, stage: str) -> Answer:
        good = super().answer(stage)
        return self._reach(stage, good) if stage in PHASES else good

    def end_message(self, body: bytes, *, to: str) -> Answer:
        moment = self._trigger.reach(Spot.MAIL)
        moment(When.BEFORE)
        if fault := self._reach("DOT", None):
            return fault
        answer = self._reach("REPLY", super().answer("END"))
        message: Any = email.message_from_bytes(body, policy=email.policy.default)
        is_repeat = REPEAT_LINE in message.get_body(("plain",)).get_content()
        self.received.append(Received(to, str(message["Message-ID"]).strip(), is_repeat))
        moment(When.AFTER)
        return answer

    def _reach(self, phase: str, good: Answer) -> Answer:
        """Return the answer at this phase of a session."""
        with self._lock:
            if self.script and self.script[0].phase == phase:
                return _ANSWERS[self.script.pop(0).manner]
        return good
