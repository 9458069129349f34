-- name: find_portal_differences
-- Where the portal shows something else than certjob has told it. %(shown)s are the contacts that it showed in a reading
-- that began at %(read_at)s; what is under way, or was confirmed since, the reading may have missed. Without %(ids)s of all
-- mentors; under their locks the same question is asked again of a few. With %(dates)s a visible contact also differs if
-- it has another last day: a later or missing one is corrected like a hide, an earlier one like a show.
--
-- No one is shown who waits for a review. A hide goes in any case.
WITH differing AS MATERIALIZED (
    SELECT m.id AS mentor_id, m.member_no, o.slug AS organisation, m.organisation_id, m.dynamics_contact_id AS contact_id,
        m.portal_visible AS visible, m.portal_visible AND shown.contact_id IS NOT NULL AS wrong_day,
        NOT m.portal_visible
            OR (shown.contact_id IS NOT NULL AND coalesce(shown.day > least(m.certified_until, '2099-12-31'), true))
            AS restricts,
        m.review_on
    FROM mentors AS m
    JOIN organisations AS o ON o.id = m.organisation_id
    LEFT JOIN unnest(%(shown)b::uuid[], %(days)b::date[]) AS shown (contact_id, day)
        ON shown.contact_id = m.dynamics_contact_id
    WHERE o.portal IS NOT NULL
        AND (%(ids)b::uuid[] IS NULL OR m.id = ANY (%(ids)b::uuid[]))
        AND m.dynamics_contact_id IS NOT NULL
        AND (
            m.portal_visible <> (shown.contact_id IS NOT NULL)
            OR (
                %(dates)s
                AND m.portal_visible
                AND m.certified_until IS NOT NULL  -- a review has to decide first
                AND shown.day IS DISTINCT FROM least(m.certified_until, '2099-12-31')
            )
        )
)
SELECT d.mentor_id, d.member_no, d.organisation, d.organisation_id, d.contact_id, d.visible, d.wrong_day, d.restricts
FROM differing AS d
WHERE NOT EXISTS (
        SELECT
        FROM portal_sync_events AS e
        WHERE e.mentor_id = d.mentor_id
            AND (
                e.status IN ('pending', 'blocked')
                OR (e.claim_token IS NOT NULL AND e.next_attempt_at > now())  -- withdrawn in the middle of its call
                OR e.delivered_at BETWEEN %(read_at)s AND now()  -- a later time was written by a wrong clock
            )
    )
    AND (d.restricts OR d.review_on > %(today)s)
ORDER BY d.organisation, d.member_no

-- name: find_unknown_contacts
-- What the portal shows, and is the contact of no mentor of an organisation with a portal; whether someone knows about it.
SELECT shown.contact_id, EXISTS (
        SELECT FROM acknowledgements AS k
        WHERE k.alert_id = '-:unknown_contacts:' || shown.contact_id
            AND k.ended_at IS NULL
            AND (k.until IS NULL OR k.until >= %(today)s)
    ) AS is_known
FROM unnest(%(shown)b::uuid[]) AS shown (contact_id)
WHERE NOT EXISTS (
    SELECT
    FROM mentors AS m
    JOIN organisations AS o ON o.id = m.organisation_id
    WHERE m.dynamics_contact_id = shown.contact_id AND o.portal IS NOT NULL
)

-- name: count_wanted_contacts
-- How many mentors should be visible, and how many of them the portal lists.
SELECT count(*) AS wanted, count(shown.contact_id) AS found
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
LEFT JOIN unnest(%(shown)b::uuid[]) AS shown (contact_id) ON shown.contact_id = m.dynamics_contact_id
WHERE o.portal IS NOT NULL AND m.portal_visible AND m.dynamics_contact_id IS NOT NULL

-- name: lock_portal_mentors
-- Only locks; what is wanted of them is read by a later statement, in a newer snapshot. In one order, and never waiting.
SELECT id FROM mentors WHERE id = ANY (%(ids)b::uuid[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED

-- name: store_portal_reading
-- The last one that began, whichever ends last. A stored time in the future was written by a wrong clock.
INSERT INTO portal_last_reading AS l (read_at, pages, visible, differences, held, run_id)
VALUES (%(read_at)s, %(pages)s, %(visible)b, %(differences)s, %(held)s, %(run_id)s)
ON CONFLICT (only_one) DO UPDATE
SET read_at = excluded.read_at, pages = excluded.pages, visible = excluded.visible, differences = excluded.differences,
    held = excluded.held, run_id = excluded.run_id
WHERE l.read_at < excluded.read_at OR l.read_at > now()

-- name: store_unknown_contacts
-- One that comes again after it was gone is a new one. In one order: two readings may end at once.
INSERT INTO portal_unknown_contacts AS u (contact_id, first_seen_at, last_seen_at)
SELECT contact_id, %(read_at)s, %(read_at)s
FROM unnest(%(contacts)b::uuid[]) AS n (contact_id)
ORDER BY contact_id
ON CONFLICT (contact_id) DO UPDATE
SET first_seen_at = CASE WHEN u.gone_at IS NULL THEN u.first_seen_at ELSE excluded.first_seen_at END,
    last_seen_at = excluded.last_seen_at,
    gone_at = NULL
WHERE u.last_seen_at > now()
    OR (u.last_seen_at <= excluded.last_seen_at AND (u.gone_at IS NULL OR u.gone_at < excluded.last_seen_at))

-- name: note_gone_contacts
-- Only after a complete reading that nobody doubts.
UPDATE portal_unknown_contacts
SET gone_at = %(read_at)s
WHERE gone_at IS NULL AND (last_seen_at < %(read_at)s OR last_seen_at > now())

-- name: forget_acknowledged_contacts
-- A contact that has become a mentor's is shown as certjob wants it. Once it is no mentor's any more, someone must decide anew.
UPDATE acknowledgements AS k
SET ended_at = now()
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE k.ended_at IS NULL
    AND m.dynamics_contact_id
        = CASE WHEN k.alert_id LIKE '-:unknown_contacts:%%' THEN split_part(k.alert_id, ':', 3)::uuid END
    AND o.portal IS NOT NULL
