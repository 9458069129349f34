-- A more urgent reminder makes the older unsent ones about the same certificate pointless, unless one is claimed just
-- now: that one is asked again under its claim.
UPDATE cert_notification_log AS l
SET status = 'superseded', claim_token = NULL, maybe_sent = l.maybe_sent OR l.claim_token IS NOT NULL
FROM unnest(%(mentor_ids)b::uuid[], %(thresholds)b::int[], %(cert_ids)b::uuid[]) AS n (mentor_id, threshold_days, cert_id)
WHERE l.mentor_id = n.mentor_id
    AND l.cert_id = n.cert_id
    AND l.threshold_days > n.threshold_days
    AND l.status IN ('pending', 'failed')
    AND NOT (l.claim_token IS NOT NULL AND l.next_attempt_at > now())
