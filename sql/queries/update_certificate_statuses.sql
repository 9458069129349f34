-- The rows are locked by this transaction already.
UPDATE certificates AS c
SET status = n.status
FROM unnest(%(ids)s::uuid[], %(statuses)s::text[]) AS n (id, status)
WHERE c.id = n.id
