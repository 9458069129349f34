-- Two questions of a coordinator. The API has the same columns.

-- Which mentors has certjob paused, and since when?
SELECT m.member_no, m.full_name, p.paused_at
FROM certjob.mentor_pauses AS p
JOIN certjob.mentors AS m ON m.id = p.mentor_id
WHERE p.reason = 'certification_expired' AND p.lifted_at IS NULL
ORDER BY p.paused_at;

-- Which certificates end within 60 days?
SELECT m.member_no, m.full_name, c.kind, c.expires_on
FROM certjob.certificates AS c
JOIN certjob.mentors AS m ON m.id = c.mentor_id
WHERE c.status IN ('valid', 'expiring') AND c.expires_on <= current_date + 60 AND m.left_at IS NULL
ORDER BY c.expires_on;
