-- Digests that are done, one page by key. Of each coordinator the last sent one stays, by every measure (its day, its
-- number, until when it told): the next one begins where it ended.
WITH page AS MATERIALIZED (
    SELECT id FROM coordinator_digests WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM coordinator_digests AS d
    USING page
    WHERE d.id = page.id
        AND d.status IN ('sent', 'cancelled', 'superseded')
        AND greatest(d.queued_at, d.sent_at, d.next_attempt_at, d.covers_until) < %(before)s
        AND d.digest_on < %(before_on)s
        AND NOT (
            d.status = 'sent'
            AND NOT EXISTS (
                SELECT
                FROM coordinator_digests AS newer
                WHERE newer.coordinator_id = d.coordinator_id
                    AND newer.status = 'sent'
                    AND newer.digest_on > d.digest_on
                    AND newer.covers_until >= coalesce(d.covers_until, '-infinity')
                    AND coalesce(newer.sent_number, 0) >= coalesce(d.sent_number, 0)
            )
        )
    RETURNING d.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted
