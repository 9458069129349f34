-- Of %(mentors)s mentors in four organisations, two with a portal, those whose first certificate ends yesterday (%(due)s of
-- 100), or the others. Certificates last two years, and some of the others end on each day from two months ago on. Some are
-- renewed or revoked, every third mentor has a second kind, and a few mentors are ill or have left. IDs are random, as in the
-- app. The triggers are off, because every mentor is due by default.
ALTER TABLE certificates DISABLE TRIGGER USER;
ALTER TABLE mentor_pauses DISABLE TRIGGER USER;

INSERT INTO organisations (slug, name, portal)
SELECT 'org' || number, 'Organisation ' || number, CASE WHEN number <= 2 THEN 'dynamics' END
FROM generate_series(1, 4) AS number
ON CONFLICT DO NOTHING;

CREATE TEMPORARY TABLE people AS
SELECT gen_random_uuid() AS id, n AS number, CASE WHEN %(is_due)s THEN %(today)s::date - 1 ELSE %(today)s::date - 60 + n %% 727 END
    AS last_day
FROM generate_series(1, %(mentors)s) AS n
WHERE (n / 4 %% 100 < %(due)s) = %(is_due)s;

INSERT INTO mentors (id, organisation_id, member_no, full_name, email, dynamics_contact_id, left_at)
SELECT p.id, o.id, 'M' || p.number, 'Mentor ' || p.number, 'm' || p.number || '@example.org',
    CASE WHEN o.portal IS NOT NULL THEN gen_random_uuid() END,
    CASE WHEN p.number %% 100 = 7 THEN now() - interval '90 days' END
FROM people AS p
JOIN organisations AS o ON o.slug = 'org' || (p.number %% 4 + 1)
ORDER BY p.number;

INSERT INTO certificates (mentor_id, kind, issued_on, expires_on, revoked_at)
SELECT p.id, held.kind, held.expires_on - 730, held.expires_on,
    CASE WHEN p.number %% 200 = 9 THEN now() - interval '30 days' END
FROM people AS p
CROSS JOIN LATERAL (
    VALUES
        ('likeperson', p.last_day, true),
        ('likeperson', p.last_day - 700, p.number %% 5 = 2),
        ('first aid', %(today)s::date - 10 + p.number %% 719, p.number %% 3 = 0)
) AS held (kind, expires_on, is_held)
WHERE held.is_held
ORDER BY p.number;

INSERT INTO mentor_pauses (mentor_id, reason, actor)
SELECT id, 'illness', 'coordinator' FROM people WHERE number %% 100 = 11;

DROP TABLE people;
ALTER TABLE certificates ENABLE TRIGGER USER;
ALTER TABLE mentor_pauses ENABLE TRIGGER USER;
