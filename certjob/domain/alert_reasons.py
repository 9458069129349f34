"""Why a push or a message still waits, in the reader's words: one answer for alerts, explain and digests.

The code of a failure and a few facts about the push decide the reason; no text is searched. What a server said stays
beside it, in English, for the operator.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from certjob.errors import FailureCode

Next = Literal["", "automatic", "operator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wording:
    """One reason in three languages, and in English what to do about it."""

    nb: str
    nn: str
    en: str
    do: str
    """The end of a sentence. ``{resync}``, ``{next_try}`` and ``{address}`` are filled in by ``advise``."""
    next: Next = ""
    """What a mail adds: that it is tried again, or that the operator has to know."""
    says_all: bool = False
    """The technical reason adds nothing."""


_NEXT: Final[Mapping[Next, Mapping[str, str]]] = {
    "": {"nb": "", "nn": "", "en": ""},
    "automatic": {
        "nb": " Vi prøver igjen automatisk.",
        "nn": " Vi prøver igjen automatisk.",
        "en": " We will try again automatically.",
    },
    "operator": {
        "nb": " Si fra til dem som drifter certjob.",
        "nn": " Sei frå til dei som driftar certjob.",
        "en": " Please tell whoever runs certjob.",
    },
}

_ADDRESS: Final = {
    "reminder": "the mentor's address in the app; certjob sends the reminder after that automatically",
    "digest": "the coordinator's address in the app, or with `certjob organisation set`; certjob sends the digest after"
    " that automatically",
}
"""What has to be put right when a message cannot be delivered, and what follows."""

_AGAIN: Final = "nothing; certjob tries again automatically {next_try}."
_TELL_OPERATOR: Final = "contact the operator and pass on the technical reason."
_ASK_FOR_ADDRESS: Final = "ask for the right address, then correct {address}."


class AlertReason(Enum):
    """Why something waits."""

    IN_WORK = _Wording(
        nb="Vi holder på med dette akkurat nå.",
        nn="Vi held på med dette akkurat no.",
        en="certjob is working on it right now.",
        do="nothing; look again in five minutes.",
    )
    NO_CONTACT_ID = _Wording(
        nb="Kontakt-ID-en fra Dynamics mangler i appen.",
        nn="Kontakt-ID-en frå Dynamics manglar i appen.",
        en="The app has no contact ID from Dynamics.",
        do="add the contact ID in the app, then {resync}.",
        says_all=True,
    )
    NEW_CONTACT_ID = _Wording(
        nb="Kontakt-ID-en er endret i appen, og portalen har ikke fått den nye ennå.",
        nn="Kontakt-ID-en er endra i appen, og portalen har ikkje fått den nye enno.",
        en="The contact ID was changed in the app; certjob has not asked the portal with the new one yet.",
        do="nothing; certjob does it automatically {next_try}.",
        next="automatic",
    )
    CONTACT_NOT_FOUND = _Wording(
        nb="Portalen finner ingen kontakt med denne ID-en.",
        nn="Portalen finn ingen kontakt med denne ID-en.",
        en="The portal has no contact with this ID.",
        do="correct the contact ID in the app, then {resync}.",
    )
    CHANGE_REFUSED = _Wording(
        nb="Dynamics avviste endringen.",
        nn="Dynamics avviste endringa.",
        en="Dynamics refused to change this contact.",
        do="check the contact ID in the app and the contact in Dynamics; once that is fixed, {resync}.",
    )
    UNTRIED = _Wording(
        nb="Dette har ventet i mer enn en time uten å bli prøvd.",
        nn="Dette har venta i meir enn ein time utan å bli prøvd.",
        en="Not tried yet, although it has waited for more than an hour.",
        do="{resync} does it now. Tell the operator that `certjob deliver` does not run, or cannot keep up.",
        next="operator",
    )
    REOPENED = _Wording(
        nb="Forrige forsøk lyktes ikke.",
        nn="Førre forsøk lukkast ikkje.",
        en="The last try failed. It was reopened since then and has not been tried again yet.",
        do="nothing; certjob does it automatically {next_try}.",
        next="automatic",
    )
    NO_ANSWER = _Wording(
        nb="Portalen svarte ikke eller klarte ikke å gjøre endringen.",
        nn="Portalen svara ikkje eller klarte ikkje å gjere endringa.",
        en="The portal did not answer or could not make the change.",
        do=_AGAIN,
        next="automatic",
    )
    OUTAGE = _Wording(
        nb="Portalen var nede eller overbelastet.",
        nn="Portalen var nede eller overbelasta.",
        en="The portal was down or overloaded, and certjob stopped before it came to this.",
        do=_AGAIN,
        next="automatic",
    )
    OUT_OF_TIME = _Wording(
        nb="Vi rakk det ikke i natt.",
        nn="Vi rakk det ikkje i natt.",
        en="certjob ran out of time before it came to this.",
        do="nothing; certjob goes on automatically {next_try}.",
        next="automatic",
    )
    OPERATOR = _Wording(
        nb="Noe er satt opp feil.",
        nn="Noko er sett opp feil.",
        en="certjob cannot update the portal for anyone: a setting, the key or the Edge Function is misconfigured.",
        do=_TELL_OPERATOR,
        next="operator",
    )

    NO_ADDRESS = _Wording(
        nb="Det mangler en e-postadresse.",
        nn="Det manglar ei e-postadresse.",
        en="There is no e-mail address.",
        do="add {address}.",
        says_all=True,
    )
    BAD_ADDRESS = _Wording(
        nb="E-postadressen er ikke gyldig.",
        nn="E-postadressa er ikkje gyldig.",
        en="The e-mail address is not valid.",
        do="correct {address}.",
        says_all=True,
    )
    ADDRESS_NOT_SUPPORTED = _Wording(
        nb="E-postserveren tar ikke imot adresser med æ, ø, å eller andre slike tegn foran @.",
        nn="E-postserveren tek ikkje imot adresser med æ, ø, å eller andre slike teikn framfor @.",
        en="The mail server does not accept addresses with letters such as é or ø before the @.",
        do=_ASK_FOR_ADDRESS,
        says_all=True,
    )
    ADDRESS_REFUSED = _Wording(
        nb="E-postserveren avviste adressen.",
        nn="E-postserveren avviste adressa.",
        en="The mail server refused the address.",
        do=_ASK_FOR_ADDRESS,
    )
    BOUNCED = _Wording(
        nb="Meldingen ble sendt, men kom i retur.",
        nn="Meldinga vart send, men kom i retur.",
        en="The message was sent, but came back.",
        do=_ASK_FOR_ADDRESS,
    )
    MESSAGE_REFUSED = _Wording(
        nb="Meldingen ble avvist.",
        nn="Meldinga vart avvist.",
        en="The message was refused.",
        do=_TELL_OPERATOR + " If it is about the address, correct {address}.",
        next="operator",
    )
    DEFERRED = _Wording(
        nb="Meldingen kan ikke leveres akkurat nå. Kanskje er postkassen full.",
        nn="Meldinga kan ikkje leverast akkurat no. Kanskje er postkassa full.",
        en="The message cannot be delivered right now; the mailbox may be full.",
        do="ask about the mailbox; certjob goes on trying automatically. If the address is wrong, correct {address}.",
        next="automatic",
    )
    MAYBE_ARRIVED = _Wording(
        nb="Vi vet ikke om meldingen kom fram.",
        nn="Vi veit ikkje om meldinga kom fram.",
        en="The connection broke when the message was handed over: it may have arrived.",
        do="nothing; certjob goes on trying automatically.",
        next="automatic",
    )
    CHANNEL_DOWN = _Wording(
        nb="E-postserveren tar ikke imot meldinger.",
        nn="E-postserveren tek ikkje imot meldingar.",
        en="The mail server takes no messages.",
        do=_TELL_OPERATOR,
        next="operator",
    )

    def why(self, language: str = "en") -> str:
        """Return the reason, in ``nb``, ``nn`` or ``en``."""
        return {"nb": self.value.nb, "nn": self.value.nn, "en": self.value.en}[language]

    def for_mail(self, language: str) -> str:
        """Return the reason and what follows, as a mail to a coordinator says it; no hyphen ends a line."""
        return (self.why(language) + _NEXT[self.value.next][language]).replace("-", "\N{NON-BREAKING HYPHEN}")

    def advise(
        self, *, resync: str = "", next_try: str = "", message: Literal["reminder", "digest"] = "reminder"
    ) -> str:
        """Return what to do, as the end of a sentence.

        ``resync`` is the command to type, ``next_try`` when certjob tries again, ``message`` what was not delivered.
        """
        filled: str = self.value.do.format(resync=resync, next_try=next_try, address=_ADDRESS[message])
        return filled

    @property
    def is_tried_automatically(self) -> bool:
        """Whether a time of the next try is worth saying."""
        return "{next_try}" in self.value.do

    def technical(self, error: str | None) -> str:
        """Return what stays to be said beside the reason: what a server said, or certjob; empty if nothing does."""
        if not error or self.value.says_all:
            return ""
        answer = re.search(
            r"\((\d(?:\d\d|\.\d+\.\d+)\b.*)\)$", error
        )  # certjob puts a server's answer in brackets, code first
        return answer[1] if answer else error


_BY_CODE: Final[Mapping[FailureCode, AlertReason]] = {
    FailureCode.NO_CONTACT_ID: AlertReason.NO_CONTACT_ID,
    FailureCode.CONTACT_NOT_FOUND: AlertReason.CONTACT_NOT_FOUND,
    FailureCode.INVALID_REQUEST: AlertReason.CHANGE_REFUSED,
    FailureCode.DYNAMICS_REJECTED: AlertReason.CHANGE_REFUSED,
    FailureCode.PORTAL_NO_ANSWER: AlertReason.NO_ANSWER,
    FailureCode.PORTAL_THROTTLED: AlertReason.NO_ANSWER,
    FailureCode.PORTAL_FAILED: AlertReason.NO_ANSWER,
    FailureCode.OUTCOME_UNKNOWN: AlertReason.NO_ANSWER,
    FailureCode.PORTAL_KEY_REFUSED: AlertReason.OPERATOR,
    FailureCode.PORTAL_MISCONFIGURED: AlertReason.OPERATOR,
    FailureCode.NO_URL: AlertReason.OPERATOR,
    FailureCode.CRASH: AlertReason.OPERATOR,
    FailureCode.BREAKER: AlertReason.OUTAGE,
    FailureCode.RETRY_AFTER: AlertReason.OUTAGE,
    FailureCode.DEADLINE: AlertReason.OUT_OF_TIME,
    FailureCode.LEASE: AlertReason.OUT_OF_TIME,
    FailureCode.IN_FLIGHT: AlertReason.OUT_OF_TIME,
    FailureCode.NO_ADDRESS: AlertReason.NO_ADDRESS,
    FailureCode.BAD_ADDRESS: AlertReason.BAD_ADDRESS,
    FailureCode.ADDRESS_NOT_SUPPORTED: AlertReason.ADDRESS_NOT_SUPPORTED,
    FailureCode.ADDRESS_REFUSED: AlertReason.ADDRESS_REFUSED,
    FailureCode.BOUNCED: AlertReason.BOUNCED,
    FailureCode.MESSAGE_REFUSED: AlertReason.MESSAGE_REFUSED,
    FailureCode.DEFERRED: AlertReason.DEFERRED,
    FailureCode.MAYBE_ARRIVED: AlertReason.MAYBE_ARRIVED,
    FailureCode.CHANNEL_DOWN: AlertReason.CHANNEL_DOWN,
}

_BY_KIND: Final = {"permanent": AlertReason.CHANGE_REFUSED, "stage": AlertReason.OPERATOR}
"""For a failure without a code that this certjob knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushState:
    """What decides why a push waits."""

    status: str
    """``pending`` or ``blocked``."""
    rounds: int
    """How often this value was tried; 0 after a newer one or a correction, whatever became of the older one."""
    failure_kind: str | None
    """``transient``, ``permanent``, ``stage``; None: nothing has failed."""
    code: str | None
    """A FailureCode; None: nothing has failed."""
    is_claimed: bool
    """A run is working on it."""
    has_contact_id: bool
    has_new_contact_id: bool
    """It was changed since the last review."""


def why_push_waits(push: PushState) -> AlertReason:
    """Return the first reason that holds."""
    if push.is_claimed:
        return AlertReason.IN_WORK
    if not push.has_contact_id:
        return AlertReason.NO_CONTACT_ID
    if push.has_new_contact_id and not push.rounds:
        return AlertReason.NEW_CONTACT_ID
    if push.failure_kind is None and push.code is None and push.status == "pending":
        return AlertReason.UNTRIED
    if push.failure_kind in {"transient", "permanent"} and push.status == "pending" and not push.rounds:
        return AlertReason.REOPENED
    kind = "permanent" if push.status == "blocked" else push.failure_kind
    code = FailureCode.parse(push.code)
    return _BY_CODE[code] if code else _BY_KIND.get(kind or "", AlertReason.NO_ANSWER)


def why_message_waits(code: str | None) -> AlertReason:
    """Return why a reminder or a digest was not delivered."""
    parsed = FailureCode.parse(code)
    return _BY_CODE[parsed] if parsed else AlertReason.MESSAGE_REFUSED
