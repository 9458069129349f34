-- Read with every chunk: a rule changed in mid-night counts from the next chunk on.
SELECT id, slug, portal IS NOT NULL AS has_portal, reminder_thresholds, optional_kinds
FROM organisations
WHERE id = ANY (%(ids)s::uuid[])
