-- Coordinators whose daily mail was refused, until their address is corrected or a later digest takes its place.
SELECT d.id AS digest_id, d.coordinator_id, c.organisation_id, coalesce(c.full_name, c.email) AS full_name,
    d.digest_on, d.last_error AS error, d.attempts, d.queued_at
FROM coordinator_digests AS d
JOIN coordinators AS c ON c.id = d.coordinator_id
WHERE d.status = 'failed'
ORDER BY d.queued_at, d.id
