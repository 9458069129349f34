"""Why a push or a message waits, in the words of a coordinator's language; what is technical stays for the operator."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What a digest says about an error."""

    words: str
    """A sentence in the reader's language; empty where there is none for this error."""
    technical: str
    """What a server or certjob said, in English, without addresses; empty where the words say it all."""


_NO_ADDRESS = {
    "nb": "Det mangler en e-postadresse.",
    "nn": "Det manglar ei e-postadresse.",
    "en": "There is no e-mail address.",
}
_BAD_ADDRESS = {
    "nb": "E-postadressen kan ikke være riktig.",
    "nn": "E-postadressa kan ikkje vere rett.",
    "en": "The e-mail address cannot be right.",
}
_LETTERS = {
    "nb": "E-postserveren tar ikke imot adresser med æ, ø, å eller andre slike tegn foran @.",
    "nn": "E-postserveren tek ikkje imot adresser med æ, ø, å eller andre slike teikn framfor @.",
    "en": "The mail server takes no address with letters like é or ø before the @.",
}
_ADDRESS_REFUSED = {
    "nb": "E-postserveren avviste adressen.",
    "nn": "E-postserveren avviste adressa.",
    "en": "The mail server refused the address.",
}
_PUT_OFF = {
    "nb": "Det går ikke akkurat nå, kanskje fordi postkassen er full. certjob prøver igjen av seg selv.",
    "nn": "Det går ikkje akkurat no, kanskje fordi postkassa er full. certjob prøver igjen av seg sjølv.",
    "en": "It does not work just now, perhaps because the mailbox is full. certjob tries again by itself.",
}
_MESSAGE_REFUSED = {
    "nb": "Meldingen ble avvist.",
    "nn": "Meldinga vart avvist.",
    "en": "The message was refused.",
}
_NO_CONTACT_ID = {
    "nb": "Kontakt-ID-en fra Dynamics mangler i appen.",
    "nn": "Kontakt-ID-en frå Dynamics manglar i appen.",
    "en": "The app has no contact id from Dynamics.",
}
_UNKNOWN_CONTACT = {
    "nb": "Portalen kjenner ikke kontakt-ID-en.",
    "nn": "Portalen kjenner ikkje kontakt-ID-en.",
    "en": "The portal does not know the contact id.",
}
_CHANGE_REFUSED = {
    "nb": "Dynamics avviste endringen.",
    "nn": "Dynamics avviste endringa.",
    "en": "Dynamics refused the change.",
}
_NO_TIME = {
    "nb": "certjob rakk det ikke, og prøver igjen av seg selv.",
    "nn": "certjob rakk det ikkje, og prøver igjen av seg sjølv.",
    "en": "certjob had no time left for it, and tries again by itself.",
}
_NO_ANSWER = {
    "nb": "Portalen svarte ikke, eller fikk det ikke til. certjob prøver igjen av seg selv.",
    "nn": "Portalen svara ikkje, eller fekk det ikkje til. certjob prøver igjen av seg sjølv.",
    "en": "The portal did not answer, or could not do it. certjob tries again by itself.",
}
_OPERATOR = {
    "nb": "Noe er feil satt opp. Si fra til dem som drifter certjob.",
    "nn": "Noko er feil sett opp. Sei frå til dei som driftar certjob.",
    "en": "Something is set up wrongly. Tell those who run certjob.",
}

_CAUSES = (
    (r"^no address$", _NO_ADDRESS),
    (r"^the e-mail address ", _BAD_ADDRESS),
    (r"beyond ASCII before the @", _LETTERS),
    (r"^the mail server refused the recipient", _ADDRESS_REFUSED),
    (r"^the (mail server|webhook) refused the message|^the message has a header", _MESSAGE_REFUSED),
    (r" put the \w+ off |may have arrived", _PUT_OFF),
    (r"no dynamics_contact_id", _NO_CONTACT_ID),
    (r"contact_not_found", _UNKNOWN_CONTACT),
    (r"dynamics_rejected|invalid_request", _CHANGE_REFUSED),
    (r"time for deliveries is over|stood still|another run is in flight", _NO_TIME),
    (r"answered (401|403|404|405|413)\b|misconfigured|CERTJOB_|refused the key|redirect", _OPERATOR),
    (r"^the portal (answered|asked|closed)|connection to the portal|answer from the portal|in a row", _NO_ANSWER),
)
"""How certjob words its errors, and what each means to somebody who does not run it; the first that fits."""

_SAID_WHOLLY = (_NO_ADDRESS, _BAD_ADDRESS, _LETTERS, _NO_CONTACT_ID)


def find_cause(error: str, language: str) -> Cause:
    """Return what a coordinator with this language is told about an error of a push or a message."""
    for pattern, words in _CAUSES:
        if re.search(pattern, error):
            if words in _SAID_WHOLLY:
                return Cause(words=words[language], technical="")
            answer = re.fullmatch(r"the (?:mail server|webhook) (?:refused|put) the \w+ (?:off )?\((.+)\)", error)
            return Cause(words=words[language], technical=answer[1] if answer else error)
    return Cause(words="", technical=error)
