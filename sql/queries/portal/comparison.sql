-- name: find_portal_differences
-- Mentors with another visibility on the portal than certjob wants. %(shown)s are the visible contacts of a reading
-- that began at %(read_at)s. Mentors with an open push, or with one that was confirmed since, are left out, because
-- the reading may be older than the push. With %(ids)s only these mentors are compared. With %(dates)s the last day
-- is compared, too. read_until is the last day that the reading has found: 0001-01-01 if the portal hides the contact,
-- and 9999-12-31 without a day. Shows of due mentors wait for the review.
WITH differing AS MATERIALIZED (
    SELECT m.id AS mentor_id, m.member_no, o.slug AS organisation, m.organisation_id, m.dynamics_contact_id AS contact_id,
        m.portal_visible AS visible,
        CASE WHEN m.portal_visible THEN least(m.certified_until, '2099-12-31') END AS wanted_until,
        CASE WHEN shown.contact_id IS NULL THEN '0001-01-01' ELSE coalesce(shown.day, '9999-12-31') END AS read_until,
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
                AND m.certified_until IS NOT NULL  -- else not reviewed yet
                AND shown.day IS DISTINCT FROM least(m.certified_until, '2099-12-31')
            )
        )
)
SELECT d.mentor_id, d.member_no, d.organisation, d.organisation_id, d.contact_id, d.visible, d.wanted_until, d.read_until
FROM differing AS d
WHERE NOT EXISTS (
        SELECT
        FROM portal_sync_events AS e
        WHERE e.mentor_id = d.mentor_id
            AND (
                e.status IN ('pending', 'blocked')
                OR (e.claim_token IS NOT NULL AND e.next_attempt_at > now())  -- withdrawn during its call
                OR e.delivered_at BETWEEN %(read_at)s AND now()  -- a later time was written by a wrong clock
            )
    )
    AND (NOT d.visible OR d.read_until > d.wanted_until OR d.review_on > %(today)s)
ORDER BY d.organisation, d.member_no

-- name: find_unknown_contacts
-- Visible contacts that belong to no mentor of an organisation with a portal, and whether someone has acknowledged
-- each.
SELECT shown.contact_id, EXISTS (
        SELECT
        FROM portal_unknown_contacts AS u
        JOIN acknowledgements AS k
            ON k.alert_id = concat_ws(':', 'all:unknown_contacts', u.contact_id, (u.first_seen_at AT TIME ZONE 'UTC')::date)
        WHERE u.contact_id = shown.contact_id
            AND u.gone_at IS NULL
            AND k.until >= %(today)s
            AND k.acknowledged_at >= u.first_seen_at
    ) AS is_known
FROM unnest(%(shown)b::uuid[]) AS shown (contact_id)
WHERE NOT EXISTS (
    SELECT
    FROM mentors AS m
    JOIN organisations AS o ON o.id = m.organisation_id
    WHERE m.dynamics_contact_id = shown.contact_id AND o.portal IS NOT NULL
)

-- name: count_wanted_contacts
-- The number of mentors who should be visible, and how many of them the portal lists.
SELECT count(*) AS wanted, count(shown.contact_id) AS found
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
LEFT JOIN unnest(%(shown)b::uuid[]) AS shown (contact_id) ON shown.contact_id = m.dynamics_contact_id
WHERE o.portal IS NOT NULL AND m.portal_visible AND m.dynamics_contact_id IS NOT NULL

-- name: lock_portal_mentors
-- Lock the mentors that no other session has locked, in the order of all statements. A later statement reads them in
-- a newer snapshot.
SELECT id FROM mentors WHERE id = ANY (%(ids)b::uuid[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED

-- name: store_portal_reading
-- Keep the reading that began last, even if another one ends later. A stored time in the future is from a wrong
-- clock.
INSERT INTO portal_last_reading AS l (read_at, visible, dates, secret_until, is_doubtful)
VALUES (%(read_at)s, %(visible)b, %(dates)s, %(secret_until)s, %(is_doubtful)s)
ON CONFLICT (only_one) DO UPDATE
SET read_at = excluded.read_at, visible = excluded.visible, dates = excluded.dates,
    secret_until = excluded.secret_until, is_doubtful = excluded.is_doubtful
WHERE l.read_at < excluded.read_at OR l.read_at > now()

-- name: forget_days_on_portal
-- The portal has lost its column for the last visible day, so it no longer hides a contact after the day that it had.
UPDATE portal_sync_events
SET sure_until = CASE WHEN sure_until > '0001-01-01' THEN 'infinity' ELSE sure_until END, shown_until = 'infinity'
WHERE shown_until BETWEEN %(read_at)s::date AND '9999-12-31' AND coalesce(delivered_at < %(read_at)s, true)

-- name: store_unknown_contacts
-- A contact that is visible again after it was gone counts as new. The order prevents deadlocks of two readings.
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
-- Contacts that the last reading did not list. Not called if the reading may be incomplete.
UPDATE portal_unknown_contacts
SET gone_at = %(read_at)s
WHERE gone_at IS NULL AND (last_seen_at < %(read_at)s OR last_seen_at > now())

-- name: store_portal_holds
-- The holds of a complete reading, without those of earlier readings. A repeated hold keeps its "since".
WITH gone AS (
    DELETE FROM portal_holds WHERE organisation_id <> ALL (%(held)b::uuid[])
)
INSERT INTO portal_holds AS h (organisation_id, mentors)
SELECT n.organisation_id, n.mentors FROM unnest(%(held)b::uuid[], %(mentors)b::int[]) AS n (organisation_id, mentors)
ON CONFLICT (organisation_id) DO UPDATE SET mentors = excluded.mentors
