-- name: has_open_exposures
-- Planning the next statement takes longer than this one, and most runs have nothing to end.
SELECT EXISTS (SELECT FROM exposures WHERE ended_at IS NULL)

-- name: end_exposures
-- An exposure ends with the first of these: the portal confirmed the hide, a reading did not list the contact, the last
-- day that the portal had confirmed has passed, or the mentor may be visible again.
UPDATE exposures AS x
SET ended_at = greatest(x.began_at, known.at)
FROM exposures AS o
JOIN mentors AS m ON m.id = o.mentor_id
CROSS JOIN LATERAL (
    SELECT min(e.at) AS at
    FROM (
        SELECT d.delivered_at
        FROM portal_sync_events AS d
        WHERE d.mentor_id = o.mentor_id AND NOT d.visible AND d.claim_contact_id = o.contact_id
            AND d.delivered_at >= o.began_at
        UNION ALL
        SELECT r.read_at
        FROM portal_last_reading AS r
        WHERE r.read_at >= o.began_at AND NOT r.held AND o.contact_id <> ALL (r.visible)
        UNION ALL
        SELECT (d.visible_until + 1)::timestamp AT TIME ZONE %(zone)s
        FROM portal_sync_events AS d
        WHERE d.mentor_id = o.mentor_id AND d.visible AND d.dates AND d.claim_contact_id = o.contact_id
            AND d.delivered_at < o.began_at AND d.visible_until < %(today)s
            -- otherwise a reading has listed the contact after that day
            AND (d.visible_until + 1)::timestamp AT TIME ZONE %(zone)s > o.began_at
            AND NOT EXISTS (
                SELECT FROM portal_sync_events AS l
                WHERE l.mentor_id = d.mentor_id AND (l.delivered_at, l.id) > (d.delivered_at, d.id)
            )
        UNION ALL
        SELECT now()
        WHERE m.portal_visible
            AND NOT EXISTS (SELECT FROM certjob_private.unhidden_mentors(%(today)s, %(zone)s) AS u WHERE u.mentor_id = m.id)
    ) AS e (at)
    WHERE e.at <= now()
) AS known
WHERE o.ended_at IS NULL AND known.at IS NOT NULL AND x.id = o.id

-- name: open_exposures
-- Mentors who must not be visible and may be, since the fact that says so, or else since the review that found it, but
-- not before the exposure of a previous contact has ended. It is proven if the portal showed the contact before, by its
-- last confirmation or a later reading.
INSERT INTO exposures (mentor_id, contact_id, began_at, is_proven)
SELECT m.id, m.dynamics_contact_id, began.at, coalesce(
        CASE WHEN r.read_at > coalesce(d.at, '-infinity')
            THEN m.dynamics_contact_id IN (SELECT unnest(l.visible) FROM portal_last_reading AS l) ELSE d.visible END,
        false
    )
FROM certjob_private.unhidden_mentors(%(today)s, %(zone)s) AS u
JOIN mentors AS m ON m.id = u.mentor_id AND m.dynamics_contact_id IS NOT NULL
LEFT JOIN portal_sync_events AS o ON o.mentor_id = m.id AND o.status IN ('pending', 'blocked') AND NOT o.visible
CROSS JOIN LATERAL (
    SELECT greatest(coalesce(u.since, o.wanted_at, now()), max(x.ended_at)) AS at
    FROM exposures AS x
    WHERE x.mentor_id = m.id AND x.contact_id <> m.dynamics_contact_id
) AS began
LEFT JOIN portal_last_reading AS r ON r.read_at < began.at
LEFT JOIN LATERAL (
    SELECT e.visible AND confirmed.last_at IS NULL AS visible, coalesce(confirmed.last_at, e.delivered_at) AS at
    FROM portal_sync_events AS e
    LEFT JOIN LATERAL (SELECT (e.visible_until + 1)::timestamp AT TIME ZONE %(zone)s AS last_at) AS confirmed
        ON e.dates AND e.visible AND confirmed.last_at <= began.at
    WHERE e.mentor_id = m.id AND e.claim_contact_id = m.dynamics_contact_id AND e.delivered_at < began.at
    ORDER BY e.delivered_at DESC, e.id DESC
    LIMIT 1
) AS d ON true
WHERE began.at <= now()
    AND NOT EXISTS (
        SELECT FROM exposures AS x
        WHERE x.mentor_id = m.id AND (x.ended_at IS NULL OR x.ended_at > began.at)
    )
ORDER BY m.id
ON CONFLICT (mentor_id) WHERE ended_at IS NULL DO NOTHING

-- name: open_edited_exposures
-- Contacts that the last reading listed although the portal had hidden them: someone has edited the portal. That is
-- possible since the reading before, and proven from this reading on, or since a later hide was wanted.
-- Only a new reading is compared with all mentors, because otherwise only an open hide can be news.
WITH candidate AS MATERIALIZED (
    SELECT e.mentor_id AS id FROM portal_sync_events AS e WHERE e.status IN ('pending', 'blocked') AND NOT e.visible
    UNION
    SELECT n.id
    FROM portal_last_reading AS l
    JOIN mentors AS n ON n.dynamics_contact_id = ANY (l.visible)
    WHERE %(after_reading)s
), edited AS MATERIALIZED (
    SELECT m.id, m.dynamics_contact_id AS contact_id, greatest(r.read_at, o.wanted_at) AS began_at,
        greatest(d.delivered_at, r.previous_at) AS known_at
    FROM candidate
    JOIN mentors AS m ON m.id = candidate.id AND m.portal_visible IS FALSE
    JOIN portal_last_reading AS r ON m.dynamics_contact_id = ANY (r.visible)
    CROSS JOIN LATERAL (
        SELECT e.visible, e.delivered_at
        FROM portal_sync_events AS e
        WHERE e.mentor_id = m.id AND e.claim_contact_id = m.dynamics_contact_id AND e.status = 'delivered'
        ORDER BY e.delivered_at DESC, e.id DESC
        LIMIT 1
    ) AS d
    LEFT JOIN portal_sync_events AS o ON o.mentor_id = m.id AND o.status IN ('pending', 'blocked')
    WHERE d.delivered_at < r.read_at
        AND (NOT d.visible OR EXISTS (  -- an earlier reading has not listed it
            SELECT FROM exposures AS x
            WHERE x.mentor_id = m.id AND x.contact_id = m.dynamics_contact_id AND x.ended_at > d.delivered_at
        ))
        AND NOT EXISTS (
            SELECT FROM exposures AS x
            WHERE x.mentor_id = m.id AND (x.ended_at IS NULL OR x.ended_at >= r.read_at)
        )
), possible AS (
    INSERT INTO exposures (mentor_id, contact_id, began_at, ended_at, is_proven)
    SELECT id, contact_id, least(known_at, began_at), began_at, false FROM edited
)
INSERT INTO exposures (mentor_id, contact_id, began_at, is_proven)
SELECT id, contact_id, began_at, true FROM edited ORDER BY id
ON CONFLICT (mentor_id) WHERE ended_at IS NULL DO NOTHING

-- name: prove_exposures
-- A possible exposure is proven from the first reading that lists the contact.
WITH proven AS (
    UPDATE exposures AS x
    SET ended_at = r.read_at
    FROM portal_last_reading AS r
    WHERE x.ended_at IS NULL AND NOT x.is_proven AND x.began_at < r.read_at
        -- IS TRUE: a hash of the contacts, which is built only if there is a row to compare
        AND (x.contact_id IN (SELECT unnest(l.visible) FROM portal_last_reading AS l)) IS TRUE
    RETURNING x.mentor_id, x.contact_id, x.ended_at
)
INSERT INTO exposures (mentor_id, contact_id, began_at, is_proven)
SELECT mentor_id, contact_id, ended_at, true FROM proven

-- name: read_exposure
-- The exposures of the last %(days)s days: the part of each that lies in them.
WITH recent AS (
    SELECT x.mentor_id, x.is_proven, x.began_at, x.ended_at,
        extract(epoch FROM coalesce(x.ended_at, now()) - greatest(x.began_at, now() - make_interval(days => %(days)s)))
            AS seconds
    FROM exposures AS x
    WHERE coalesce(x.ended_at, now()) > now() - make_interval(days => %(days)s)
)
SELECT (SELECT count(DISTINCT mentor_id) FROM recent)::integer AS mentors,
    coalesce((SELECT sum(seconds) FROM recent), 0)::bigint AS seconds,
    coalesce((SELECT sum(seconds) FROM recent WHERE is_proven), 0)::bigint AS proven_seconds,
    (SELECT count(*) FROM recent WHERE ended_at IS NULL)::integer AS open,
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
