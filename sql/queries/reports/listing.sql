-- name: find_mentors_to_list
-- One chunk. The rules check the other conditions. Python cannot represent infinity and years before 1.
SELECT m.id, m.full_name, m.email, m.locale, m.dynamics_contact_id,
    CASE WHEN m.left_at IS NOT NULL  -- least() ignores nulls
        THEN greatest(least((m.left_at AT TIME ZONE 'UTC')::date, %(today)s), '0001-01-01') END AS left_on
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id > %(after)s
    AND (%(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s)
    AND (%(everyone)s OR m.left_at IS NULL)
    AND (NOT %(without_contact_id)s OR (o.portal IS NOT NULL AND m.dynamics_contact_id IS NULL))
    AND (NOT %(without_address)s OR btrim(coalesce(m.email, '')) = '')
    AND (
        (%(from_on)s::date IS NULL AND %(to_on)s::date IS NULL)
        OR EXISTS (
            SELECT
            FROM certificates AS c
            WHERE c.mentor_id = m.id AND c.expires_on BETWEEN coalesce(%(from_on)s, '-infinity')
                AND coalesce(%(to_on)s, 'infinity')
        )
    )
ORDER BY m.id
LIMIT %(limit)s

-- name: list_revoked_days
-- In UTC, as load reads them.
SELECT id, greatest(least((revoked_at AT TIME ZONE 'UTC')::date, %(today)s), '0001-01-01')
FROM certificates
WHERE mentor_id = ANY (%(ids)b::uuid[]) AND revoked_at IS NOT NULL
