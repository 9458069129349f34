-- certjob's own pause; at most one is open per mentor by a unique index.
INSERT INTO mentor_pauses (mentor_id, reason, actor)
SELECT mentor_id, 'certification_expired', 'certjob'
FROM unnest(%(mentor_ids)b::uuid[]) AS mentor_id
