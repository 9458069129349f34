-- Once per (mentor, threshold, certificate). The same date again does nothing; a certificate extended in place re-arms
-- the row and its earlier cycle goes to history; a date that was already mailed about is never mailed again, so a typo
-- corrected back sends nothing twice; a reminder cancelled or superseded by a mistake comes back. If the outcome for
-- that very date is unknown (claimed or maybe sent), the repeat says so. In mentor order, as everybody who locks several.
INSERT INTO cert_notification_log AS l (mentor_id, threshold_days, cert_id, expires_on, run_id)
SELECT n.mentor_id, n.threshold_days, n.cert_id, n.expires_on, %(run_id)s
FROM unnest(%(mentor_ids)b::uuid[], %(thresholds)b::int[], %(cert_ids)b::uuid[], %(expiries)b::date[])
    AS n (mentor_id, threshold_days, cert_id, expires_on)
ORDER BY n.mentor_id, n.threshold_days, n.cert_id
ON CONFLICT (mentor_id, threshold_days, cert_id) DO UPDATE
SET expires_on = excluded.expires_on,
    status = 'pending',
    attempts = 0,
    next_attempt_at = now(),
    claim_token = NULL,
    queued_at = now(),
    sent_at = NULL,
    last_error = NULL,
    run_id = excluded.run_id,
    history = l.history || jsonb_build_array(jsonb_build_object(
        'expires_on', l.expires_on, 'status', l.status, 'queued_at', l.queued_at, 'sent_at', l.sent_at,
        'attempts', l.attempts, 'maybe_sent', l.maybe_sent OR l.claim_token IS NOT NULL, 'last_error', l.last_error
    )),
    maybe_sent = (l.expires_on = excluded.expires_on AND (l.maybe_sent OR l.claim_token IS NOT NULL))
        OR l.history @> jsonb_build_array(jsonb_build_object('expires_on', excluded.expires_on, 'maybe_sent', true))
WHERE (l.expires_on <> excluded.expires_on OR l.status IN ('cancelled', 'superseded'))
    AND NOT l.history @> jsonb_build_array(jsonb_build_object('expires_on', excluded.expires_on, 'status', 'sent'))
RETURNING l.mentor_id, l.threshold_days, l.cert_id
