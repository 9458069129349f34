-- Resolved by UPDATE, never deleted: Realtime does not filter DELETE by row-level security.
UPDATE dynamics_sync_failures
SET resolved_at = now()
WHERE mentor_id = ANY (%(mentor_ids)b::uuid[]) AND resolved_at IS NULL
