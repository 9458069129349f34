-- Null leaves a value as it is, an empty text or 'none' removes it. Nothing is written when nothing changes, because a
-- written rule makes the next night look at every mentor of the organisation.
UPDATE organisations AS o
SET (name, portal, reminder_thresholds, optional_kinds, contact_email, contact_phone, renewal_url)
    = (n.name, n.portal, n.reminder_thresholds, n.optional_kinds, n.contact_email, n.contact_phone, n.renewal_url)
FROM (
    SELECT
        id,
        coalesce(%(name)s::text, name) AS name,
        CASE WHEN %(portal)s::text IS NULL THEN portal ELSE nullif(%(portal)s::text, 'none') END AS portal,
        coalesce(%(thresholds)s::integer[], reminder_thresholds) AS reminder_thresholds,
        coalesce(%(optional_kinds)s::text[], optional_kinds) AS optional_kinds,
        CASE WHEN %(contact_email)s::text IS NULL THEN contact_email ELSE nullif(%(contact_email)s::text, '') END
            AS contact_email,
        CASE WHEN %(contact_phone)s::text IS NULL THEN contact_phone ELSE nullif(%(contact_phone)s::text, '') END
            AS contact_phone,
        CASE WHEN %(renewal_url)s::text IS NULL THEN renewal_url ELSE nullif(%(renewal_url)s::text, '') END
            AS renewal_url
    FROM organisations
    WHERE slug = %(slug)s
) AS n
WHERE o.id = n.id
    AND (o.name, o.portal, o.reminder_thresholds, o.optional_kinds, o.contact_email, o.contact_phone, o.renewal_url)
        IS DISTINCT FROM
        (n.name, n.portal, n.reminder_thresholds, n.optional_kinds, n.contact_email, n.contact_phone, n.renewal_url)
