-- Every row learns its mentor once. The statements after it then reach a certificate by its whole key; joined through
-- mentors they would walk all certificates of a mentor for each row.
UPDATE pg_temp.load_rows AS r
SET mentor_id = m.id
FROM mentors AS m
WHERE m.organisation_id = r.organisation_id AND m.member_no = r.member_no
