-- Active mentors who have never held a certificate of a kind that counts: nobody watches them. Of a million mentors few can
-- be such: who is due, who never will be, who has a certificate that has not begun or is of a kind that is optional
-- somewhere. Everybody else has a day of review ahead, which only a certificate gives that has begun and counts. The
-- optional kinds are given, not joined: the planner knows then how many certificates that are.
WITH candidate AS (
    SELECT id, organisation_id
    FROM mentors
    WHERE (review_on <= %(today)s OR review_on = 'infinity') AND left_at IS NULL
    UNION
    SELECT m.id, m.organisation_id
    FROM certificates AS c
    JOIN mentors AS m ON m.id = c.mentor_id
    WHERE (c.issued_on > %(today)s OR c.kind = ANY (%(optional_kinds)s)) AND m.left_at IS NULL
)
SELECT count(*)
FROM candidate AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE NOT EXISTS (
        SELECT
        FROM certificates AS c
        WHERE c.mentor_id = m.id
            AND NOT (c.kind = ANY (o.optional_kinds))
            AND (c.issued_on <= %(today)s OR c.revoked_at IS NOT NULL)
    )
    AND NOT EXISTS (SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL)
