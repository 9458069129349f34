-- The audit, in the same transaction as the state it tells of.
INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of, run_id)
SELECT n.certificate_id, n.mentor_id, n.from_status, n.to_status, %(today)s, %(run_id)s
FROM unnest(%(certificate_ids)b::uuid[], %(mentor_ids)b::uuid[], %(from_statuses)b::text[], %(to_statuses)b::text[])
    AS n (certificate_id, mentor_id, from_status, to_status)
