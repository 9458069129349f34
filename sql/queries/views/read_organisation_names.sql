-- How people call the organisations, and how commands do.
SELECT id, slug, name FROM organisations
