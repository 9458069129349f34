-- Whoever has a certificate that ends soon; whether another continues it, the rules say.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name
FROM mentors AS m
WHERE m.organisation_id = %(organisation_id)s
    AND m.left_at IS NULL
    AND m.id IN (
        SELECT c.mentor_id
        FROM certificates AS c
        WHERE c.expires_on BETWEEN %(today)s AND %(today)s + %(within_days)s AND c.revoked_at IS NULL
    )
