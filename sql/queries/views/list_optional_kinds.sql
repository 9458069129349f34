-- Every kind that some organisation does without.
SELECT DISTINCT kind FROM organisations AS o CROSS JOIN LATERAL unnest(o.optional_kinds) AS kind
