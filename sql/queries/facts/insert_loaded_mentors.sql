-- New mentors. Another load that adds the same ones at this moment is waited for, and its rows are then updated.
INSERT INTO mentors (organisation_id, member_no, full_name, email, locale, dynamics_contact_id)
SELECT DISTINCT r.organisation_id, r.member_no, r.full_name, r.email, coalesce(r.locale, 'nb'), r.dynamics_contact_id
FROM pg_temp.load_rows AS r
WHERE NOT EXISTS (
    SELECT FROM mentors AS m WHERE m.organisation_id = r.organisation_id AND m.member_no = r.member_no
)
ORDER BY r.organisation_id, r.member_no
ON CONFLICT (organisation_id, member_no) DO NOTHING
