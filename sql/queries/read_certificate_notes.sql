-- What the facts for a decision leave out: when a certificate was revoked, and since which night it is what it is noted as.
SELECT c.id, c.revoked_at,
    (
        SELECT t.as_of
        FROM certificate_transitions AS t
        WHERE t.mentor_id = c.mentor_id AND t.certificate_id = c.id AND t.to_status = c.status
        ORDER BY t.id DESC
        LIMIT 1
    ) AS noted_on
FROM certificates AS c
WHERE c.mentor_id = %(mentor_id)s
