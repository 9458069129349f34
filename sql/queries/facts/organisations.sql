-- name: list_organisation_ids
SELECT slug, id FROM organisations

-- name: read_organisations
-- Read with every chunk, because a changed rule applies from the next chunk.
SELECT id, slug, portal IS NOT NULL AS has_portal, reminder_thresholds, optional_kinds
FROM organisations
WHERE id = ANY (%(ids)s::uuid[])

-- name: read_organisation_details
SELECT id, slug, name, portal, reminder_thresholds AS thresholds, optional_kinds, contact_email, contact_phone, renewal_url,
    sender, (SELECT count(*) FROM mentors AS m WHERE m.organisation_id = o.id AND m.left_at IS NULL) AS mentors
FROM organisations AS o
WHERE %(slug)s::text IS NULL OR slug = %(slug)s
ORDER BY slug

-- name: lock_organisation
-- Serialises concurrent changes of an organisation and its coordinators.
SELECT id FROM organisations WHERE slug = %(slug)s FOR NO KEY UPDATE

-- name: insert_organisation
-- A new organisation starts with the defaults of its table. update_organisation then sets the given values.
INSERT INTO organisations (slug, name)
VALUES (%(slug)s, coalesce(%(name)s, upper(%(slug)s)))
ON CONFLICT (slug) DO NOTHING

-- name: update_organisation
-- Null keeps a value; an empty text or 'none' removes it. Unchanged values are not written, because a trigger makes
-- certjob review all mentors of the organisation after a change of its rules.
UPDATE organisations AS o
SET (name, portal, reminder_thresholds, optional_kinds, contact_email, contact_phone, renewal_url, sender)
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
-- Only certified mentors are shown on the portal. If every kind were optional, no mentor would be certified.
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
