-- Everything one message needs, in one statement, just before it is sent: the facts for asking the rules again, the
-- address and the organisation's words.
SELECT m.id, m.member_no, m.full_name, nullif(btrim(m.email), '') AS email, m.locale, m.left_at IS NOT NULL AS "left",
    m.portal_visible, o.id AS organisation_id, o.slug, o.name AS organisation_name, o.portal IS NOT NULL AS has_portal,
    o.reminder_thresholds, o.optional_kinds, o.contact_email, o.contact_phone, o.renewal_url,
    EXISTS (
        SELECT FROM mentor_pauses AS p
        WHERE p.mentor_id = m.id AND p.reason = 'certification_expired' AND p.lifted_at IS NULL
    ) AS paused,
    (
        SELECT coalesce(jsonb_agg(jsonb_build_array(
            c.id, c.kind, c.issued_on, c.expires_on, c.revoked_at IS NOT NULL, c.status
        )), '[]')
        FROM certificates AS c
        WHERE c.mentor_id = m.id
    ) AS certificates
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = %(mentor_id)s
