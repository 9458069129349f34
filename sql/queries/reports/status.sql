-- name: list_last_runs
-- The last runs of each command, because a delivery runs every 15 minutes. Also the last run that failed, and the last
-- that did not end, of the last seven days. An unfinished run has died if it does not update last_seen_at.
SELECT
    id AS run_id, command, organisation, host, version, as_of, started_at, last_seen_at, finished_at, outcome, lines,
    round(extract(epoch FROM greatest(ended_at - started_at, interval '0')), 3)::float8 AS duration_seconds
FROM (
    SELECT id, command, organisation, host, version, as_of, started_at, last_seen_at, finished_at, lines,
        coalesce(outcome, CASE WHEN is_silent THEN 'died' ELSE 'running' END) AS outcome,
        coalesce(finished_at, CASE WHEN is_silent THEN last_seen_at ELSE now() END) AS ended_at,
        row_number() OVER (PARTITION BY command ORDER BY started_at DESC) AS number,
        row_number() OVER (PARTITION BY command, outcome ORDER BY started_at DESC) AS number_of_outcome
    FROM job_runs
    CROSS JOIN LATERAL (SELECT last_seen_at < now() - %(silence)s::interval AS is_silent) AS life
) AS numbered
WHERE number <= %(limit)s
    OR (number_of_outcome = 1 AND outcome NOT IN ('ok', 'attention') AND started_at > now() - interval '7 days')
ORDER BY started_at DESC, id

-- name: read_last_good_run
-- A wrong clock recorded runs that end in the future. Until then, such a run would be the last good one.
SELECT id AS run_id, finished_at, greatest(extract(epoch FROM now() - finished_at), 0)::bigint AS age_seconds
FROM job_runs
WHERE command = 'run' AND organisation IS NULL AND outcome IN ('ok', 'attention')
    AND finished_at <= now() + interval '1 minute'
ORDER BY finished_at DESC
LIMIT 1

-- name: find_without_certificate
-- The first five active mentors who have never had a certificate that counts, and the number of all.
SELECT o.slug || ' ' || m.member_no, count(*) OVER ()
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.without_certificate AND m.left_at IS NULL
ORDER BY o.slug, m.member_no
LIMIT 5

-- name: list_hidden_by_hand
SELECT o.slug || ' ' || m.member_no AS mentor, h.name AS by, h.since
FROM certjob_private.hidden_by_hand AS h
JOIN mentors AS m ON m.id = h.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
WHERE NOT h.is_read
ORDER BY h.since, o.slug, m.member_no

-- name: count_coming_reviews
-- Today includes all overdue mentors. The condition is one range of an index.
SELECT greatest(review_on, %(today)s::date) AS due_on, count(*) AS mentors
FROM mentors
WHERE review_on < %(until)s
GROUP BY greatest(review_on, %(today)s::date)

-- name: read_exposure
-- The sum of the exposures since a moment: the part of each that lies in this time.
WITH recent AS MATERIALIZED (
    SELECT x.mentor_id, x.began_at, x.ended_at,
        extract(epoch FROM coalesce(x.ended_at, now()) - greatest(x.began_at, %(since)s)) AS seconds
    FROM certjob_private.exposures(%(since)s, %(today)s, %(zone)s) AS x
    WHERE %(organisation_id)s::uuid IS NULL
        OR EXISTS (SELECT FROM mentors AS m WHERE m.id = x.mentor_id AND m.organisation_id = %(organisation_id)s)
)
SELECT (SELECT count(DISTINCT mentor_id) FROM recent)::integer AS mentors,
    (SELECT count(*) FROM recent WHERE ended_at IS NULL)::integer AS open,
    coalesce((SELECT sum(seconds) FROM recent), 0)::bigint AS seconds,
    longest.seconds AS longest_seconds, longest.who AS longest, longest.cause
FROM (SELECT) AS one
LEFT JOIN LATERAL (
    SELECT x.seconds::bigint AS seconds, o.slug || ' ' || m.member_no AS who, (
            SELECT f.failure_code
            FROM dynamics_sync_failures AS f
            WHERE f.mentor_id = x.mentor_id AND f.last_failed_at >= x.began_at
                AND f.created_at <= coalesce(x.ended_at, now())
            ORDER BY f.last_failed_at DESC
            LIMIT 1
        ) AS cause
    FROM recent AS x
    JOIN mentors AS m ON m.id = x.mentor_id
    JOIN organisations AS o ON o.id = m.organisation_id
    ORDER BY x.seconds DESC, x.mentor_id
    LIMIT 1
) AS longest ON true
