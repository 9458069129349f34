-- What the facts for a decision leave out: when a certificate was revoked, and since which night it is what it is noted as.
-- Times that only PostgreSQL knows: see read_mentor_story.sql.
SELECT c.id,
    CASE WHEN c.revoked_at IS NOT NULL THEN greatest('0002-01-01', least(c.revoked_at, '9998-12-31')) END AS revoked_at,
    (
        SELECT t.as_of
        FROM certificate_transitions AS t
        WHERE t.mentor_id = c.mentor_id AND t.certificate_id = c.id AND t.to_status = c.status
        ORDER BY t.id DESC
        LIMIT 1
    ) AS noted_on
FROM certificates AS c
WHERE c.mentor_id = %(mentor_id)s
