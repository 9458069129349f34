"""Delivery reports as mail servers write them, by RFC 3464 and their documented forms; every name is an example."""


def postfix(
    message_id: str, address: str, *, action: str = "failed", status: str = "5.1.1", returned: str = "message/rfc822"
) -> bytes:
    """Postfix returns the whole mail, or its headers where it is large."""
    return _wire(f"""\
From: MAILER-DAEMON@mx.mentors.example (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
To: bounces@mentors.example
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
	boundary="4Xa7kL1zBqz.1773126007/mx.mentors.example"
Message-Id: <20260310070007.4Xa7kL1zBqz@mx.mentors.example>

This is a MIME-encapsulated message.

--4Xa7kL1zBqz.1773126007/mx.mentors.example
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

<{address}>: host mail.example.org[192.0.2.25] said: 550 5.1.1 <{address}>:
    Recipient address rejected: User unknown (in reply to RCPT TO command)

--4Xa7kL1zBqz.1773126007/mx.mentors.example
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.mentors.example
X-Postfix-Queue-ID: 4Xa7kL1zBqz

Final-Recipient: rfc822; {address}
Original-Recipient: rfc822;{address}
Action: {action}
Status: {status}
Remote-MTA: dns; mail.example.org
Diagnostic-Code: smtp; 550 5.1.1 <{address}>: Recipient address rejected: User unknown

--4Xa7kL1zBqz.1773126007/mx.mentors.example
Content-Description: Undelivered Message
Content-Type: {returned}

{_mail(message_id, address)}
--4Xa7kL1zBqz.1773126007/mx.mentors.example--
""")


def exim(message_id: str, address: str) -> bytes:
    """Exim says no original recipient; it writes the address after the semicolon without a space."""
    return _wire(f"""\
Return-path: <>
X-Failed-Recipients: {address}
From: Mail Delivery System <Mailer-Daemon@mx.mentors.example>
To: bounces@mentors.example
Content-Type: multipart/report; report-type=delivery-status; boundary=1773126008-eximdsn-1804289383
MIME-Version: 1.0
Subject: Mail delivery failed: returning message to sender
Message-Id: <E1trsEa-000000001Ab-2xYz@mx.mentors.example>

--1773126008-eximdsn-1804289383
Content-type: text/plain; charset=us-ascii

This message was created automatically by mail delivery software.

  {address}
    SMTP error from remote mail server after RCPT TO:<{address}>:
    550 5.1.1 <{address}>: unknown

--1773126008-eximdsn-1804289383
Content-type: message/delivery-status

Reporting-MTA: dns; mx.mentors.example

Action: failed
Final-Recipient: rfc822;{address}
Status: 5.0.0
Diagnostic-Code: smtp; 550 5.1.1 <{address}>: unknown

--1773126008-eximdsn-1804289383
Content-type: message/rfc822

Return-path: <bounces@mentors.example>
{_mail(message_id, address)}
--1773126008-eximdsn-1804289383--
""")


def microsoft_365(message_id: str, address: str) -> bytes:
    """Exchange Online: pages for people first, diagnostics that go on over lines, all of it nested once more."""
    return _wire(f"""\
From: Microsoft Outlook <MicrosoftExchange329e71ec88ae4615bbc36ab6ce41109e@mentors.example>
To: bounces@mentors.example
Content-Type: multipart/report; report-type=delivery-status;
	boundary="5a1f0c8e-1111-4222-8333-944445555666"
Message-ID: <5a1f0c8e-1111-4222-8333-944445555666@AB1PR00MB0001.eurprd00.prod.example>
In-Reply-To: {message_id}
References: {message_id}
Subject: Undeliverable: Your certificate expires
MIME-Version: 1.0

--5a1f0c8e-1111-4222-8333-944445555666
Content-Type: multipart/alternative; differences=Content-Type;
	boundary="6b2f0c8e-1111-4222-8333-944445555666"

--6b2f0c8e-1111-4222-8333-944445555666
Content-Type: text/plain; charset="us-ascii"
Content-Transfer-Encoding: quoted-printable

Your message to {address} couldn't be delivered.=20

--6b2f0c8e-1111-4222-8333-944445555666--

--5a1f0c8e-1111-4222-8333-944445555666
Content-Type: message/delivery-status

Reporting-MTA: dns;AB1PR00MB0001.eurprd00.prod.example

Final-Recipient: rfc822;{address}
Action: failed
Status: 5.1.10
Diagnostic-Code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient
 {address} not found by SMTP address lookup

--5a1f0c8e-1111-4222-8333-944445555666
Content-Type: message/rfc822

Received: from AM0PR00MB0002.eurprd00.prod.example (2001:db8::2)
	by AB1PR00MB0001.eurprd00.prod.example; Tue, 10 Mar 2026 07:00:08 +0000
{_mail(message_id, address)}
--5a1f0c8e-1111-4222-8333-944445555666--
""")


def in_utf8(message_id: str, address: str) -> bytes:
    """A report about an address with letters beyond ASCII (RFC 6533)."""
    report = postfix(message_id, address, returned="message/global").replace(b"rfc822;", b"utf-8;")
    return report.replace(b"message/delivery-status", b"message/global-delivery-status")


def _mail(message_id: str, address: str) -> str:
    return f"""\
From: Likepersontjenesten <post@mentors.example>
To: {address}
Message-ID: {message_id}
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

Hei, sertifikatet ditt g=C3=A5r ut.
"""


def _wire(text: str) -> bytes:
    return text.encode().replace(b"\n", b"\r\n")
