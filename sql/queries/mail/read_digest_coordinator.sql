-- Whom a digest is for, and what was told already, as queue_digests has it: since when to look, with a day more than needed,
-- since what was told is left out by its line. The time of a server whose clock was wrong counts for nothing. By the digest,
-- which follows its coordinator when the app's user id becomes known.
SELECT c.id, c.organisation_id, o.slug AS organisation_slug, o.name AS organisation_name, c.full_name, c.email, c.locale,
    CASE
        WHEN last.covers_until <= now() THEN last.covers_until - interval '1 day'
        WHEN last.id IS NOT NULL THEN now() - interval '30 days'
        ELSE least(now(), first.queued_at) - interval '7 days'
    END AS since,
    CASE WHEN last.told_on <= %(today)s + 1 THEN last.told_on ELSE %(today)s - 7 END AS told_on,
    coalesce(last.lines, '{}') AS told,
    now() AS read_at
FROM coordinators AS c
JOIN organisations AS o ON o.id = c.organisation_id
LEFT JOIN LATERAL (
    SELECT d.id, d.covers_until, coalesce(d.told_on, d.digest_on) AS told_on, d.told AS lines
    FROM coordinator_digests AS d
    WHERE d.coordinator_id = c.id AND d.status = 'sent'
    ORDER BY d.sent_number DESC NULLS LAST
    LIMIT 1
) AS last ON true
LEFT JOIN LATERAL (
    SELECT min(d.queued_at) AS queued_at
    FROM coordinator_digests AS d
    WHERE d.coordinator_id = c.id AND d.status <> 'cancelled'
) AS first ON last.id IS NULL
WHERE c.id = (SELECT d.coordinator_id FROM coordinator_digests AS d WHERE d.id = %(digest_id)s)
