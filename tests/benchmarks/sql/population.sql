-- %(mentors)s mentors in five organisations, the first with a portal. Certificates last two years, and some end on each
-- day from two months ago on. Some are renewed or revoked, every third mentor has a second kind, and a few mentors are ill
-- or have left. IDs are random, as in the app. The triggers are off, because every mentor is due by default.
ALTER TABLE certificates DISABLE TRIGGER USER;
ALTER TABLE mentor_pauses DISABLE TRIGGER USER;

INSERT INTO organisations (slug, name, portal)
SELECT 'org' || number, 'Organisation ' || number, CASE WHEN number = 1 THEN 'dynamics' END
FROM generate_series(1, 5) AS number;

INSERT INTO mentors (organisation_id, member_no, full_name, email, dynamics_contact_id, portal_visible, left_at)
SELECT o.id, 'M' || n, 'Mentor ' || n, 'm' || n || '@example.org',
    CASE WHEN o.portal IS NOT NULL THEN gen_random_uuid() END, true,
    CASE WHEN n %% 100 = 7 THEN now() - interval '90 days' END
FROM generate_series(1, %(mentors)s) AS n
JOIN organisations AS o ON o.slug = 'org' || (n %% 5 + 1)
ORDER BY n;

INSERT INTO certificates (mentor_id, kind, issued_on, expires_on, revoked_at)
SELECT m.id, held.kind, held.expires_on - 730, held.expires_on,
    CASE WHEN m.number %% 200 = 9 THEN now() - interval '30 days' END
FROM (SELECT id, substr(member_no, 2)::integer AS number FROM mentors) AS m
CROSS JOIN LATERAL (
    VALUES
        ('likeperson', %(today)s::date - 60 + m.number %% 727, true),
        ('likeperson', %(today)s::date - 60 + m.number %% 727 - 700, m.number %% 5 = 2),
        ('first aid', %(today)s::date - 10 + m.number %% 719, m.number %% 3 = 0)
) AS held (kind, expires_on, is_held)
WHERE held.is_held
ORDER BY m.number;

INSERT INTO mentor_pauses (mentor_id, reason, actor)
SELECT id, 'illness', 'coordinator' FROM mentors WHERE substr(member_no, 2)::integer %% 100 = 11;

ALTER TABLE certificates ENABLE TRIGGER USER;
ALTER TABLE mentor_pauses ENABLE TRIGGER USER;
