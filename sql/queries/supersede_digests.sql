-- What an earlier day's unsent digest would tell, today's tells too; unless the earlier one is being sent just now.
UPDATE coordinator_digests AS d
SET status = 'superseded', claim_token = NULL
FROM coordinator_digests AS newer
WHERE newer.coordinator_id = d.coordinator_id
    AND newer.digest_on = %(today)s
    AND newer.status = 'pending'
    AND d.digest_on < newer.digest_on
    AND d.status IN ('pending', 'failed')
    AND NOT (d.claim_token IS NOT NULL AND d.next_attempt_at > now())
