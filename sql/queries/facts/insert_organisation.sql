-- A new organisation starts with the defaults of its table; the values that were given follow in an update, the same
-- for new and old ones.
INSERT INTO organisations (slug, name)
VALUES (%(slug)s, coalesce(%(name)s, upper(%(slug)s)))
ON CONFLICT (slug) DO NOTHING
