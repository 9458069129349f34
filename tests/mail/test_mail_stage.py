"""The mail stage, against real mail servers: one message at a time, and a failure is known to be whose it is."""

import email
import email.policy
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.errors import (
    ChannelDownError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
    StoppedBySignalError,
)
from certjob.mail import stage as mail_stage
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.messages import NightTemplates, Templates
from certjob.outbox.claims import StageStop
from certjob.outbox.retry import constant
from certjob.stopping import StopFlag
from tests.support.channels import BlockingStage, reminder_mail
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, message_ids, review, run_out
from tests.support.nights import CollectingChannel
from tests.support.smtp_server import HOST, Fault, Mailbox, real_server, scripted_server

STATUSES = "SELECT status, count(*) FROM cert_notification_log GROUP BY status ORDER BY status"
UNTOUCHED = (
    "SELECT count(*) FROM cert_notification_log"
    " WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL AND next_attempt_at <= now() AND NOT maybe_sent"
)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries without the seconds between them."""
    monkeypatch.setattr(mail_stage, "exponential", lambda **_: constant(seconds=0))


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """Another session, to look at what is committed."""
    with database.connect(database_url) as connection:
        yield connection


def queue(facts: Facts, count: int, *, locale: str = "nb") -> list[UUID]:
    """So many mentors with a reminder each, in the order of delivery: m0@example.org, m1@example.org, …"""
    organisation = facts.organisation("nhf", portal=None)
    for _ in range(count):
        facts.certified_mentor(organisation, TODAY + timedelta(days=5), locale=locale)
    review(facts.connection)
    mentors = [row[0] for row in facts.rows("SELECT mentor_id FROM cert_notification_log ORDER BY id")]
    facts.connection.execute(
        "UPDATE mentors SET email = 'm' || n - 1 || '@example.org'"
        " FROM unnest(%s::uuid[]) WITH ORDINALITY AS m (mentor_id, n) WHERE id = mentor_id",
        (mentors,),
    )
    return mentors  # type: ignore[return-value]


def stage(connection: Connection, channel: Channel, *, stop: StopFlag | None = None, **options: Any) -> BlockingStage:
    return BlockingStage(connection, reminder_mail(connection, **options), channel, stop=stop)


def code_of(stopped: StageStop | None) -> str | None:
    return None if stopped is None else stopped.code


def smtp(port: int) -> SmtpChannel:
    """A channel to a server of this machine."""
    return SmtpChannel(HOST, port=port, sender=parse_sender("certjob@mentors.example"))


def outcomes(*errors: Exception | None) -> Callable[[OutgoingMessage], None]:
    """What the channel does with its first messages, one after the other; then all is well."""
    left = iter(errors)

    def on_send(_message: OutgoingMessage) -> None:
        error = next(left, None)
        if error is not None:
            raise error

    return on_send


def parsed(envelope: object) -> EmailMessage:
    message = email.message_from_bytes(getattr(envelope, "content", b""), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


class ObservingMailbox(Mailbox):
    """Looks into the database while a message comes in."""

    def __init__(self, observer: Connection) -> None:
        super().__init__()
        self.observer = observer
        self.sent_before: list[int] = []

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802 - aiosmtpd's
        rows = self.observer.execute("SELECT count(*) FROM cert_notification_log WHERE status = 'sent'").fetchall()
        self.sent_before.append(rows[0][0])
        return await super().handle_DATA(server, session, envelope)


class TestSending:
    """When all is well."""

    def test_each_is_settled_before_the_next_is_sent(
        self, connection: Connection, facts: Facts, other: Connection
    ) -> None:
        """Whatever happens at a message, at most one may come twice."""
        queue(facts, 6)
        mailbox = ObservingMailbox(other)
        with real_server(mailbox) as server:
            running = stage(connection, smtp(server.port))

            stopped = running.run()

        assert stopped is None
        assert mailbox.sent_before == [0, 1, 2, 3, 4, 5]
        assert running.counts.sent == 6
        assert (
            facts.rows("SELECT status, attempts, sent_at IS NOT NULL, claim_token FROM cert_notification_log")
            == [("sent", 1, True, None)] * 6
        )

    def test_each_recipient_gets_a_message_of_their_own(self, connection: Connection, facts: Facts) -> None:
        """One address in it, made by a machine, with an id from its row and its cycle."""
        queue(facts, 2, locale="en")
        mailbox = Mailbox()
        with real_server(mailbox) as server:
            stage(connection, smtp(server.port)).run()

        rows = facts.rows("SELECT id FROM cert_notification_log ORDER BY id")
        assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["m0@example.org"], ["m1@example.org"]]
        messages = [parsed(envelope) for envelope in mailbox.envelopes]
        assert [message["To"] for message in messages] == [
            "Kari Nordmann <m0@example.org>",
            "Kari Nordmann <m1@example.org>",
        ]
        assert {message["Auto-Submitted"] for message in messages} == {"auto-generated"}
        assert [message["Message-ID"] for message in messages] == [
            f"<certjob-reminder-{row[0]}-0@mentors.example>" for row in rows
        ]
        body = messages[0].get_body(("plain",))
        assert body is not None
        assert "may already have received this reminder" not in body.get_content()

    def test_more_than_one_claim_is_sent(self, connection: Connection, facts: Facts) -> None:
        """Until none is left."""
        queue(facts, 105)
        channel = CollectingChannel()

        assert stage(connection, channel).run() is None

        assert len(set(message_ids(channel.sent))) == 105

    def test_nothing_due_sends_nothing(self, connection: Connection) -> None:
        """And opens no connection."""
        assert stage(connection, CollectingChannel(on_send=outcomes(AssertionError()))).run() is None


class TestUnknownOutcome:
    """The connection broke after the message was handed over."""

    def test_it_is_repeated_with_the_same_id_and_says_so(self, connection: Connection, facts: Facts) -> None:
        """Pending with a delay and maybe sent; the others go on."""
        queue(facts, 2, locale="en")
        with scripted_server({"END": Fault.CUT}) as server:
            assert stage(connection, smtp(server.port)).run() is None
            first = [parsed_body(body)["Message-ID"] for body in server.bodies]

        assert (
            facts.rows(
                "SELECT status, maybe_sent, attempts, next_attempt_at > now() + interval '14 min', claim_token"
                " FROM cert_notification_log"
            )
            == [("pending", True, 1, True, None)] * 2
        )
        make_due(facts, "cert_notification_log")
        mailbox = Mailbox()
        with real_server(mailbox) as good:
            stage(connection, smtp(good.port)).run()
        messages = [parsed(envelope) for envelope in mailbox.envelopes]
        assert [message["Message-ID"] for message in messages] == first
        for message in messages:
            body = message.get_body(("plain",))
            assert body is not None
            assert "You may already have received this reminder" in body.get_content()

    def test_three_in_a_row_stop_the_stage(self, connection: Connection, facts: Facts) -> None:
        """A server that breaks off every time would make a duplicate of every message."""
        queue(facts, 6)
        channel = CollectingChannel(on_send=outcomes(*[OutcomeUnknownError("cut")] * 6))
        running = stage(connection, channel)

        stopped = running.run()

        assert code_of(stopped) == "unknown"
        assert facts.rows(UNTOUCHED) == [(3,)]
        assert facts.rows("SELECT count(*) FROM cert_notification_log WHERE maybe_sent AND status = 'pending'") == [
            (3,)
        ]

    def test_after_a_crash_the_repeat_says_so(self, connection: Connection, facts: Facts) -> None:
        """The process vanished between the message and its settle."""
        queue(facts, 1)
        reminder_mail(connection).claim()
        run_out(facts, "cert_notification_log")
        channel = CollectingChannel()

        stage(connection, channel).run()

        assert [message.repeat for message in channel.sent] == [True]


def parsed_body(body: bytes) -> EmailMessage:
    message = email.message_from_bytes(body, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


class TestRefused:
    """5xx to RCPT or DATA: this recipient, for good."""

    def test_it_is_failed_and_the_others_go_on(self, connection: Connection, facts: Facts) -> None:
        """With the server's word, without the address."""
        queue(facts, 3)

        class Picky(Mailbox):
            async def handle_RCPT(  # noqa: N802 - aiosmtpd's
                self, server: object, session: object, envelope: object, address: str, options: object
            ) -> str:
                if address.startswith("m1@"):
                    return f"550 5.1.1 {address} is unknown"
                envelope.rcpt_tos.append(address)  # type: ignore[attr-defined]
                return "250 fine"

        mailbox = Picky()
        with real_server(mailbox) as server:
            running = stage(connection, smtp(server.port))

            stopped = running.run()

        assert stopped is None
        assert (running.counts.sent, running.counts.failed) == (2, 1)
        assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["m0@example.org"], ["m2@example.org"]]
        status, attempts, reason = facts.rows(
            "SELECT status, attempts, last_error FROM cert_notification_log ORDER BY id"
        )[1]
        assert (status, attempts) == ("failed", 1)
        assert "550" in str(reason)
        assert "m1@" not in str(reason)

    def test_five_in_a_row_are_the_servers_fault(self, connection: Connection, facts: Facts) -> None:
        """The stage stops; the five are pending again, later, and nothing is counted as failed."""
        queue(facts, 8)
        with scripted_server({"RCPT": b"554 relay access denied"}) as server:
            running = stage(connection, smtp(server.port))

            stopped = running.run()

        assert code_of(stopped) == "refused"
        assert "5 messages in a row were refused" in str(stopped)
        assert "554 relay access denied" in str(stopped)
        assert running.counts.failed == 0
        assert facts.rows(STATUSES) == [("pending", 8)]
        assert facts.rows(UNTOUCHED) == [(3,)]
        assert facts.rows(
            "SELECT attempts, count(*) FROM cert_notification_log WHERE next_attempt_at > now() + interval '14 min'"
            " GROUP BY attempts"
        ) == [(1, 5)]

    def test_five_that_are_refused_again_and_again_are_tried_less_and_less_often(
        self, connection: Connection, facts: Facts
    ) -> None:
        """Five dead mailboxes on a quiet day must not knock at the server every 15 minutes for weeks."""
        queue(facts, 5)
        connection.execute("UPDATE cert_notification_log SET attempts = 3")

        stopped = stage(connection, CollectingChannel(on_send=outcomes(*[RecipientRefusedError("550")] * 5))).run()

        assert code_of(stopped) == "refused"
        assert facts.rows(
            "SELECT count(*) FROM cert_notification_log WHERE next_attempt_at - now()"
            " BETWEEN interval '119 min' AND interval '120 min'"
        ) == [(5,)]

    def test_what_became_of_one_of_the_five_meanwhile_stands(
        self, connection: Connection, facts: Facts, other: Connection
    ) -> None:
        """A more urgent reminder superseded it between its refusal and the fifth."""
        mentors = queue(facts, 5)
        refused: list[UUID | None] = []

        def refuse(message: OutgoingMessage) -> None:
            refused.append(message.mentor_id)
            if len(refused) == 5:
                other.execute(
                    "UPDATE cert_notification_log SET status = 'superseded' WHERE mentor_id = %s", (mentors[0],)
                )
            text = "550"
            raise RecipientRefusedError(text)

        stopped = stage(connection, CollectingChannel(on_send=refuse)).run()

        assert code_of(stopped) == "refused"
        assert facts.rows(STATUSES) == [("pending", 4), ("superseded", 1)]

    def test_the_next_run_begins_with_the_others(self, connection: Connection, facts: Facts) -> None:
        """Five addresses that are really dead do not stand before the rest every night."""
        mentors = queue(facts, 8)
        stage(connection, CollectingChannel(on_send=outcomes(*[RecipientRefusedError("550")] * 5))).run()
        make_due(facts, "cert_notification_log")
        tried: list[UUID | None] = []

        def refuse_the_dead(message: OutgoingMessage) -> None:
            tried.append(message.mentor_id)
            if message.mentor_id in mentors[:5]:
                text = "550"
                raise RecipientRefusedError(text)

        channel = CollectingChannel(on_send=refuse_the_dead)

        stopped = stage(connection, channel).run()

        assert tried[:3] == mentors[5:]
        assert code_of(stopped) == "refused"
        assert facts.rows(STATUSES) == [("pending", 5), ("sent", 3)]

    @pytest.mark.parametrize("between", [None, RecipientDeferredError("450 later")], ids=["a success", "a deferral"])
    def test_a_sign_of_life_begins_the_count_anew(
        self, connection: Connection, facts: Facts, between: Exception | None
    ) -> None:
        """Four, another answer, four: these are eight wrong addresses."""
        queue(facts, 9)
        four = [RecipientRefusedError("550")] * 4

        stopped = stage(connection, CollectingChannel(on_send=outcomes(*four, between, *four))).run()

        assert stopped is None
        assert facts.rows("SELECT count(*) FROM cert_notification_log WHERE status = 'failed'") == [(8,)]

    def test_addresses_that_are_none_are_nobodys_fault(self, connection: Connection, facts: Facts) -> None:
        """No server was asked: a bad import does not stop the mail of everybody else."""
        queue(facts, 8)
        connection.execute("UPDATE mentors SET email = 'nowhere' WHERE email < 'm6'")
        channel = CollectingChannel()

        stopped = stage(connection, channel).run()

        assert stopped is None
        assert [message.to for message in channel.sent] == ["m6@example.org", "m7@example.org"]
        assert facts.rows(STATUSES) == [("failed", 6), ("sent", 2)]


class TestDeferred:
    """4xx to RCPT or DATA: this recipient, for now."""

    @pytest.mark.parametrize(("attempts", "minutes"), [(0, 15), (1, 30), (5, 360)])
    def test_it_is_tried_again_later(self, connection: Connection, facts: Facts, attempts: int, minutes: int) -> None:
        """Pending, with a delay that doubles; surely not sent."""
        queue(facts, 1)
        connection.execute("UPDATE cert_notification_log SET attempts = %s", (attempts,))
        with scripted_server({"RCPT": b"450 greylisted"}) as server:
            running = stage(connection, smtp(server.port))

            stopped = running.run()

        assert stopped is None
        assert (running.counts.sent, running.counts.failed, running.counts.lost) == (0, 0, 0)
        assert facts.rows(
            "SELECT status, attempts, maybe_sent, claim_token, next_attempt_at - now()"
            " BETWEEN make_interval(mins => %s, secs => -30) AND make_interval(mins => %s) FROM cert_notification_log",
            minutes,
            minutes,
        ) == [("pending", attempts + 1, False, None, True)]

    def test_many_do_not_stop_the_stage(self, connection: Connection, facts: Facts) -> None:
        """A server that greylists everybody is in order."""
        queue(facts, 12)

        stopped = stage(connection, CollectingChannel(on_send=outcomes(*[RecipientDeferredError("450")] * 12))).run()

        assert stopped is None
        assert facts.rows("SELECT status, attempts, count(*) FROM cert_notification_log GROUP BY 1, 2") == [
            ("pending", 1, 12)
        ]


class TestChannelDown:
    """Connection, TLS, login, sender and 421 concern everybody."""

    @pytest.mark.parametrize(
        "answers",
        [
            {"GREETING": Fault.CUT},
            {"GREETING": b"421 too busy"},
            {"MAIL": b"550 who are you"},
            {"RCPT": b"421 closing"},
        ],
        ids=["cut", "too busy", "sender refused", "closing"],
    )
    def test_three_tries_then_the_stage_stops(
        self, connection: Connection, facts: Facts, answers: dict[str, bytes | Fault]
    ) -> None:
        """Nobody is failed, no attempt is counted, the first one included."""
        queue(facts, 4)
        with scripted_server(answers) as server:
            running = stage(connection, smtp(server.port))

            stopped = running.run()

        assert code_of(stopped) == "down"
        assert "the rest stays pending" in str(stopped)
        assert server.connections == 3
        assert facts.rows(UNTOUCHED) == [(4,)]
        assert running.counts.failed == 0

    def test_the_next_run_delivers(self, connection: Connection, facts: Facts) -> None:
        """Once the server is back, without a word of a repeat."""
        queue(facts, 3)
        with scripted_server({"GREETING": Fault.CUT}) as server:
            stage(connection, smtp(server.port)).run()
        channel_again = CollectingChannel()

        assert stage(connection, channel_again).run() is None

        assert [message.repeat for message in channel_again.sent] == [False] * 3

    def test_a_hiccup_stops_nothing(self, connection: Connection, facts: Facts) -> None:
        """Two failures, then the server takes it: sent once."""
        queue(facts, 3)
        channel = CollectingChannel(on_send=outcomes(ChannelDownError("421"), ChannelDownError("reset")))

        assert stage(connection, channel).run() is None

        assert len(set(message_ids(channel.sent))) == len(channel.sent) == 3

    def test_what_was_sent_before_stays_sent(self, connection: Connection, facts: Facts) -> None:
        """The server went away in the middle."""
        queue(facts, 5)
        channel = CollectingChannel(on_send=outcomes(None, None, *[ChannelDownError("gone")] * 3))

        stopped = stage(connection, channel).run()

        assert code_of(stopped) == "down"
        assert facts.rows(STATUSES) == [("pending", 3), ("sent", 2)]
        assert facts.rows(UNTOUCHED) == [(3,)]


class TestLimits:
    """Deadline, signal, lease."""

    def test_at_the_deadline_the_rest_is_released(self, connection: Connection, facts: Facts) -> None:
        """The one in hand is finished."""
        queue(facts, 3)

        stopped = stage(connection, CollectingChannel()).run(deadline_seconds=0)

        assert code_of(stopped) == "deadline"
        assert facts.rows(UNTOUCHED) == [(3,)]

    def test_a_signal_ends_it_between_two_messages(self, connection: Connection, facts: Facts) -> None:
        """What was sent is settled, the rest is as it was."""
        queue(facts, 5)
        stop = StopFlag()
        channel = CollectingChannel(on_send=lambda _message: stop.set())

        with pytest.raises(StoppedBySignalError):
            stage(connection, channel, stop=stop).run()

        assert facts.rows(STATUSES) == [("pending", 4), ("sent", 1)]
        assert facts.rows(UNTOUCHED) == [(4,)]

    def test_a_signal_while_the_channel_is_down_is_still_a_signal(self, connection: Connection, facts: Facts) -> None:
        """It cuts the tries short; the run was stopped, the mail server is not blamed."""
        queue(facts, 2)
        stop = StopFlag()

        def go_down(_message: OutgoingMessage) -> None:
            stop.set()
            text = "gone"
            raise ChannelDownError(text)

        with pytest.raises(StoppedBySignalError):
            stage(connection, CollectingChannel(on_send=go_down), stop=stop).run()

        assert facts.rows(UNTOUCHED) == [(2,)]

    def test_an_unforeseen_error_leaves_one_message_in_doubt(self, connection: Connection, facts: Facts) -> None:
        """It keeps its lease, and the repeat will say so; the rest is released."""
        queue(facts, 4)
        channel = CollectingChannel(on_send=outcomes(None, LookupError("a bug")))

        with pytest.raises(LookupError):
            stage(connection, channel).run()

        assert facts.rows(UNTOUCHED) == [(2,)]
        assert facts.rows(
            "SELECT attempts, status FROM cert_notification_log"
            " WHERE claim_token IS NOT NULL AND next_attempt_at > now()"
        ) == [(1, "pending")]

    def test_a_lease_that_is_too_short_from_the_start_stops_the_stage(
        self, connection: Connection, facts: Facts
    ) -> None:
        """Released and not sent, and not claimed over and over again."""
        queue(facts, 3)
        channel = CollectingChannel()

        stopped = stage(connection, channel, lease_seconds=0.5).run()

        assert code_of(stopped) == "down"
        assert "can take longer than its lease" in str(stopped)
        assert channel.sent == []
        assert facts.rows(UNTOUCHED) == [(3,)]

    def test_another_try_is_not_begun_when_it_does_not_fit(self, connection: Connection, facts: Facts) -> None:
        """The first try took so long that a second one could outlast the lease."""
        queue(facts, 1)
        channel = CollectingChannel()
        tries: list[OutgoingMessage] = []

        def time_out(message: OutgoingMessage) -> None:
            tries.append(message)
            channel.worst_case_seconds = 1000.0
            text = "no answer"
            raise ChannelDownError(text)

        channel.on_send = time_out

        stopped = stage(connection, channel).run()

        assert code_of(stopped) == "down"
        assert len(tries) == 1
        assert facts.rows(UNTOUCHED) == [(1,)]


class TestLostLease:
    """Somebody took the reminder over while its message was on its way."""

    @pytest.mark.parametrize(
        "error",
        [None, RecipientDeferredError("450"), OutcomeUnknownError("cut"), RecipientRefusedError("550")],
        ids=["sent", "deferred", "unknown", "refused"],
    )
    def test_nothing_is_written_and_it_is_reported(
        self, connection: Connection, facts: Facts, other: Connection, error: Exception | None
    ) -> None:
        """The other one's claim stands."""
        queue(facts, 1)

        def freeze(_message: OutgoingMessage) -> None:
            run_out(Facts(other), "cert_notification_log")
            reminder_mail(other).claim()
            if error is not None:
                raise error

        running = stage(connection, CollectingChannel(on_send=freeze))

        running.run()

        assert running.counts.lost == 1
        assert (running.counts.sent, running.counts.failed) == (0, 0)
        assert facts.rows(
            "SELECT status, attempts, claim_token IS NOT NULL, maybe_sent FROM cert_notification_log"
        ) == [("pending", 2, True, True)]


def test_a_message_that_makes_the_server_hang_up_does_not_hold_up_the_others(
    connection: Connection, facts: Facts
) -> None:
    """It is put behind them: the next stage begins with somebody else."""
    queue(facts, 3)

    def hang_up(message: OutgoingMessage) -> None:
        if message.to == "m0@example.org":
            text = "connection closed"
            raise ChannelDownError(text)

    first = CollectingChannel(on_send=hang_up)
    assert code_of(stage(connection, first).run()) == "down"
    assert first.sent == []

    second = CollectingChannel(on_send=hang_up)
    stage(connection, second).run()

    assert [message.to for message in second.sent] == ["m1@example.org", "m2@example.org"]


def test_a_template_that_breaks_on_one_mentor_gives_way_to_ours(
    connection: Connection, facts: Facts, tmp_path: Path
) -> None:
    """Everybody gets the message in time; the stage says at its end what broke, without naming anybody."""
    queue(facts, 3)
    facts.connection.execute("UPDATE mentors SET full_name = 'Ola Hansen' WHERE email = 'm1@example.org'")
    (tmp_path / "reminder.nb.txt").write_text("Emne\n\n{{ {'Kari Nordmann': 'Kjære Kari'}[name] }}\n")
    channel = CollectingChannel()
    templates = NightTemplates(lambda: Templates(tmp_path))
    running = stage(connection, channel, templates=templates)

    assert running.run() is None

    stopped = templates.problem()

    assert [message.text.split()[0] for message in channel.sent] == ["Kjære", "Hei,", "Kjære"]
    assert running.counts.sent == 3
    assert stopped is not None
    assert stopped.code == "template"
    assert "reminder.nb.txt line 3" in stopped.reason
    assert "1 message was written with certjob's own template instead" in stopped.reason
    assert "Hansen" not in stopped.reason


def test_a_webhook_that_is_out_of_order_gets_three_tries_and_no_more(connection: Connection, facts: Facts) -> None:
    """It says when to come back, which is kept; then the stage stops, and all messages stay pending."""
    queue(facts, 20)
    error = ChannelDownError("the webhook cannot take messages now (503)", retry_after_seconds=0.05)
    channel = CollectingChannel(on_send=outcomes(*[error] * 99))
    began = time.monotonic()

    stopped = stage(connection, channel).run()

    assert code_of(stopped) == "down"
    assert time.monotonic() - began >= 0.1
    assert channel.sent == []
    assert facts.rows(STATUSES) == [("pending", 20)]
