-- Only certjob's own pauses, named by id.
UPDATE mentor_pauses
SET lifted_at = now(), lifted_by = 'certjob'
WHERE id = ANY (%(ids)b::uuid[]) AND lifted_at IS NULL AND actor = 'certjob'
