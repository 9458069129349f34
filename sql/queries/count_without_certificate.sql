-- Active mentors who have never held a certificate of a kind that counts: nobody watches them.
SELECT count(*)
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.left_at IS NULL
    AND NOT EXISTS (
        SELECT
        FROM certificates AS c
        WHERE c.mentor_id = m.id
            AND NOT (c.kind = ANY (o.optional_kinds))
            AND (c.issued_on <= %(today)s OR c.revoked_at IS NOT NULL)
    )
    AND NOT EXISTS (SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL)
