-- In the transaction that says it was sent: what the coordinator knows now, and until when it was looked. Numbered, since a
-- row of an earlier day can be the one that was sent later.
UPDATE coordinator_digests AS d
SET covers_from = %(covers_from)s,
    covers_until = %(covers_until)s,
    told_on = %(told_on)s,
    told = %(told)s,
    sent_number = 1 + coalesce(
        (
            SELECT max(o.sent_number)
            FROM coordinator_digests AS o
            WHERE o.coordinator_id = d.coordinator_id AND o.status = 'sent'
        ),
        0
    )
WHERE d.id = %(id)s
