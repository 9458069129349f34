-- A file names organisations by slug.
SELECT slug, id::text FROM organisations
