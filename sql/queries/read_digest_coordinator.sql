-- Whom a digest is for, and from when to when it tells. It ends before the oldest transaction of any certjob that is still
-- open: what that one is about to commit carries its beginning as its time, and belongs to the next digest.
SELECT c.id, c.organisation_id, o.slug AS organisation_slug, o.name AS organisation_name, c.full_name, c.email, c.locale,
    coalesce(
        (SELECT max(d.covers_until) FROM coordinator_digests AS d WHERE d.coordinator_id = c.id AND d.status = 'sent'),
        now() - interval '7 days'
    ) AS covers_from,
    coalesce(
        (SELECT max(d.digest_on) FROM coordinator_digests AS d WHERE d.coordinator_id = c.id AND d.status = 'sent'),
        %(today)s - 7
    ) AS told_on,
    (
        SELECT coalesce(min(a.xact_start), now())
        FROM pg_stat_activity AS a
        WHERE a.datname = current_database() AND a.application_name = 'certjob' AND a.xact_start < now()
    ) AS covers_until
FROM coordinators AS c
JOIN organisations AS o ON o.id = c.organisation_id
WHERE c.id = %(coordinator_id)s
