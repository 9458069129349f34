-- The rows are locked by this transaction already.
UPDATE certificates AS c
SET status = n.status
FROM unnest(%(ids)b::uuid[], %(statuses)b::text[]) AS n (id, status)
WHERE c.id = n.id
