-- One digest a day for each coordinator of whose organisation there is something to tell since the last sent one: a pause
-- opened or lifted by certjob, a certificate that has come within 30 days of its end, a push that waits, a reminder that
-- could not be delivered. One that had nothing to tell earlier in the day may have now.
WITH told AS (
    SELECT c.id, c.organisation_id,
        coalesce(max(d.covers_until), now() - interval '7 days') AS until,
        coalesce(max(d.digest_on), %(today)s - 7) AS told_on
    FROM coordinators AS c
    LEFT JOIN coordinator_digests AS d ON d.coordinator_id = c.id AND d.status = 'sent'
    WHERE %(organisation_id)s::uuid IS NULL OR c.organisation_id = %(organisation_id)s
    GROUP BY c.id
)
INSERT INTO coordinator_digests AS d (coordinator_id, digest_on)
SELECT t.id, %(today)s
FROM told AS t
WHERE EXISTS (
        SELECT
        FROM mentor_pauses AS p
        JOIN mentors AS m ON m.id = p.mentor_id AND m.organisation_id = t.organisation_id
        WHERE p.reason = 'certification_expired' AND p.paused_at >= t.until
    )
    OR EXISTS (
        SELECT
        FROM mentor_pauses AS p
        JOIN mentors AS m ON m.id = p.mentor_id AND m.organisation_id = t.organisation_id
        WHERE p.reason = 'certification_expired' AND p.lifted_at >= t.until
    )
    OR EXISTS (
        SELECT
        FROM certificates AS c
        JOIN mentors AS m ON m.id = c.mentor_id AND m.organisation_id = t.organisation_id
        WHERE c.expires_on > t.told_on + 30 AND c.expires_on <= %(today)s + 30 AND c.status IN ('valid', 'expiring')
    )
    OR EXISTS (SELECT FROM portal_alerts AS a WHERE a.organisation_id = t.organisation_id)
    OR EXISTS (
        SELECT
        FROM cert_notification_log AS l
        JOIN mentors AS m ON m.id = l.mentor_id AND m.organisation_id = t.organisation_id
        WHERE l.status = 'failed' AND l.next_attempt_at >= t.until
    )
ORDER BY t.id
ON CONFLICT (coordinator_id, digest_on) DO UPDATE
SET status = 'pending', attempts = 0, next_attempt_at = now(), queued_at = now(), last_error = NULL
WHERE d.status = 'cancelled'
