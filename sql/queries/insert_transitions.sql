-- The audit, in the same transaction as the state it tells of.
INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of, run_id)
SELECT n.certificate_id, n.mentor_id, n.from_status, n.to_status, %(today)s, %(run_id)s
FROM unnest(%(certificate_ids)s::uuid[], %(mentor_ids)s::uuid[], %(from_statuses)s::text[], %(to_statuses)s::text[])
    AS n (certificate_id, mentor_id, from_status, to_status)
