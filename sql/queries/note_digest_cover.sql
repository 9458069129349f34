-- In the transaction that says it was sent: what the coordinator knows now, and until when it was looked.
UPDATE coordinator_digests
SET covers_from = %(covers_from)s, covers_until = %(covers_until)s, told_on = %(told_on)s, told = %(told)s
WHERE id = %(id)s
