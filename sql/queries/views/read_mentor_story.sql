-- Whom a story is about. review_on has no finite value while certjob is to look at once, or never. The app can write a
-- time that only PostgreSQL knows, such as infinity: the story shows the nearest that a program can hold.
SELECT m.id, m.member_no, m.full_name, nullif(btrim(m.email), '') AS email, m.dynamics_contact_id AS contact_id,
    CASE WHEN m.left_at IS NOT NULL THEN greatest('0002-01-01', least(m.left_at, '9998-12-31')) END AS left_at,
    m.portal_visible AS wanted, o.id AS organisation_id, o.slug, o.name AS organisation_name,
    m.review_on <= %(today)s AS review_is_due,
    CASE WHEN isfinite(m.review_on) THEN m.review_on END AS review_on,
    now() AS now
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = %(mentor_id)s
