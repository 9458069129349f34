-- In the transaction that says it was sent: the next digest begins where this one ended.
UPDATE coordinator_digests
SET covers_from = %(covers_from)s, covers_until = %(covers_until)s
WHERE id = %(id)s
