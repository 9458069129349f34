-- name: find_crowded_mentors
-- Mentors with more certificates or open pauses than read_mentors lets pass: the list would look at each of the rows beside
-- each other one. One pass over an index.
SELECT m.id
FROM mentors AS m
WHERE m.id IN (
        SELECT c.mentor_id FROM certificates AS c GROUP BY c.mentor_id HAVING count(*) > 200
        UNION
        SELECT p.mentor_id
        FROM mentor_pauses AS p
        WHERE p.lifted_at IS NULL AND p.reason <> 'certification_expired'
        GROUP BY p.mentor_id
        HAVING count(*) > 200
    )
    AND (%(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s)
ORDER BY m.id

-- name: list_certificates
-- One row per certificate, whose last day is nearest first, with what the rules need to say its status: the other rows of
-- its mentor and kind. The bounds only keep the server from reading what cannot be asked for. A page on a terminal is read
-- to its end and no further, so the order is that of an index. A kind or a reason from before the bounds of migration 0009
-- is cut.
SELECT c.id, c.mentor_id, m.organisation_id, m.member_no, m.full_name, m.left_at IS NOT NULL AS "left",
    left(c.kind, 201) AS kind,
    c.issued_on, c.expires_on, c.revoked_at IS NOT NULL AS revoked,
    ARRAY(
        SELECT left(p.reason, 201) FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL ORDER BY p.reason
    ) AS pauses,
    (
        SELECT jsonb_agg(jsonb_build_array(s.id, s.issued_on, s.expires_on, s.revoked_at IS NOT NULL))
        FROM certificates AS s
        WHERE s.mentor_id = c.mentor_id AND s.kind = c.kind AND s.id <> c.id
    ) AS siblings
FROM certificates AS c
JOIN mentors AS m ON m.id = c.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
WHERE (%(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s)
    AND (m.left_at IS NULL OR %(with_left)s)
    AND m.id <> ALL (%(crowded)s::uuid[])
    AND (%(fewest_days_left)s::int IS NULL OR c.expires_on >= %(today)s::date + %(fewest_days_left)s::int)
    AND (%(most_days_left)s::int IS NULL OR c.expires_on <= %(today)s::date + %(most_days_left)s::int)
ORDER BY c.expires_on, o.slug, m.member_no, c.kind, c.issued_on
