-- The same file by hand: one COPY into a table of its own, one upsert for mentors, one for certificates, one transaction.
-- No row is checked, none is rejected by its line, and nobody else may be there.
INSERT INTO mentors (organisation_id, member_no, full_name, email, locale)
SELECT DISTINCT ON (o.id, r.member_no) o.id, r.member_no, r.full_name, r.email, 'nb'
FROM pg_temp.bare_rows AS r
JOIN organisations AS o ON o.slug = r.organisation
ORDER BY o.id, r.member_no
ON CONFLICT (organisation_id, member_no) DO UPDATE SET full_name = excluded.full_name, email = excluded.email;

INSERT INTO certificates AS c (mentor_id, kind, issued_on, expires_on)
SELECT m.id, r.kind, r.issued_on, r.expires_on
FROM pg_temp.bare_rows AS r
JOIN organisations AS o ON o.slug = r.organisation
JOIN mentors AS m ON m.organisation_id = o.id AND m.member_no = r.member_no
ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE SET expires_on = excluded.expires_on
WHERE c.expires_on <> excluded.expires_on;
