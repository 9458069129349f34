-- What an unsent digest would tell, the newest one tells too, or has told: of each coordinator only that one stays open. One
-- that may have arrived hands this on, so that the newest says that it may be a repeat. A day beyond tomorrow was
-- written on a wrong clock and gives way to a real one. What is being sent just now is left alone until it is settled.
WITH old AS MATERIALIZED (
    SELECT d.id, newest.id AS newest_id, d.maybe_sent OR d.claim_token IS NOT NULL AS maybe_sent
    FROM coordinator_digests AS d
    JOIN LATERAL (
        SELECT n.id
        FROM coordinator_digests AS n
        WHERE n.coordinator_id = d.coordinator_id
            AND n.status IN ('pending', 'sent')
            AND n.digest_on <= %(today)s + 1
            AND (n.digest_on > d.digest_on OR d.digest_on > %(today)s + 1)
        ORDER BY n.digest_on DESC
        LIMIT 1
    ) AS newest ON true
    WHERE d.status IN ('pending', 'failed')
        AND NOT (
            d.claim_token IS NOT NULL
            AND d.next_attempt_at > now()
            AND d.next_attempt_at <= now() + interval '25 hours'
        )
    ORDER BY d.id
    FOR NO KEY UPDATE OF d
), handed_on AS (
    UPDATE coordinator_digests AS n
    SET maybe_sent = true
    FROM old
    WHERE n.id = old.newest_id AND old.maybe_sent AND n.status = 'pending'
)
UPDATE coordinator_digests AS d
SET status = 'superseded', claim_token = NULL, maybe_sent = old.maybe_sent
FROM old
WHERE d.id = old.id
