-- name: find_organisation
-- An organisation by its slug.
SELECT id FROM organisations WHERE slug = %(slug)s

-- name: list_organisation_ids
-- A file names organisations by slug.
SELECT slug, id FROM organisations

-- name: read_organisations
-- Read with every chunk: a rule changed in mid-night counts from the next chunk on.
SELECT id, slug, portal IS NOT NULL AS has_portal, reminder_thresholds, optional_kinds
FROM organisations
WHERE id = ANY (%(ids)s::uuid[])

-- name: read_organisation_details
-- All that can be set of each organisation, or of one; the coordinators are in list_coordinators. Mentors who have left are
-- not counted.
SELECT id, slug, name, portal, reminder_thresholds AS thresholds, optional_kinds, contact_email, contact_phone, renewal_url,
    sender, (SELECT count(*) FROM mentors AS m WHERE m.organisation_id = o.id AND m.left_at IS NULL) AS mentors
FROM organisations AS o
WHERE %(slug)s::text IS NULL OR slug = %(slug)s
ORDER BY slug

-- name: lock_organisation
-- Two people who set up the same organisation take turns; its coordinators are guarded by the same lock.
SELECT id FROM organisations WHERE slug = %(slug)s FOR NO KEY UPDATE

-- name: insert_organisation
-- A new organisation starts with the defaults of its table; the values that were given follow in an update, the same
-- for new and old ones.
INSERT INTO organisations (slug, name)
VALUES (%(slug)s, coalesce(%(name)s, upper(%(slug)s)))
ON CONFLICT (slug) DO NOTHING

-- name: update_organisation
-- Null leaves a value as it is, an empty text or 'none' removes it. Nothing is written when nothing changes, because a
-- written rule makes the next night look at every mentor of the organisation.
UPDATE organisations AS o
SET (name, portal, reminder_thresholds, optional_kinds, contact_email, contact_phone, renewal_url,
        sender)
    = (n.name, n.portal, n.reminder_thresholds, n.optional_kinds, n.contact_email, n.contact_phone, n.renewal_url,
        n.sender)
FROM (
    SELECT
        id,
        coalesce(%(name)s::text, name) AS name,
        nullif(coalesce(%(portal)s::text, portal), 'none') AS portal,
        coalesce(%(thresholds)s::integer[], reminder_thresholds) AS reminder_thresholds,
        coalesce(%(optional_kinds)s::text[], optional_kinds) AS optional_kinds,
        nullif(coalesce(%(contact_email)s::text, contact_email), '') AS contact_email,
        nullif(coalesce(%(contact_phone)s::text, contact_phone), '') AS contact_phone,
        nullif(coalesce(%(renewal_url)s::text, renewal_url), '') AS renewal_url,
        nullif(coalesce(%(sender)s::text, sender), '') AS sender
    FROM organisations
    WHERE slug = %(slug)s
) AS n
WHERE o.id = n.id
    AND (o.name, o.portal, o.reminder_thresholds, o.optional_kinds, o.contact_email, o.contact_phone, o.renewal_url,
            o.sender)
        IS DISTINCT FROM
        (n.name, n.portal, n.reminder_thresholds, n.optional_kinds, n.contact_email, n.contact_phone, n.renewal_url,
            n.sender)

-- name: no_kind_counts
-- In an organisation with a portal, only certified mentors are shown. If every kind were optional, no one would be certified.
SELECT o.portal IS NOT NULL
    AND EXISTS (SELECT FROM mentors AS m JOIN certificates AS c ON c.mentor_id = m.id WHERE m.organisation_id = o.id)
    AND NOT EXISTS (
        SELECT
        FROM mentors AS m
        JOIN certificates AS c ON c.mentor_id = m.id
        WHERE m.organisation_id = o.id AND c.kind <> ALL (o.optional_kinds)
    )
FROM organisations AS o
WHERE o.slug = %(slug)s

-- name: count_open_hides
-- The next review withdraws them, because certjob pushes nothing for an organisation without a portal.
SELECT count(*)
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
WHERE o.slug = %(slug)s AND NOT e.visible AND e.status IN ('pending', 'blocked')
