-- What delete_old_digests would delete.
SELECT count(*)
FROM coordinator_digests AS d
WHERE d.status IN ('sent', 'cancelled', 'superseded')
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
