-- The app's user id has become known. One statement, because the digests refer to the coordinator and follow: the
-- foreign key is looked at when both updates are made.
WITH moved AS (
    UPDATE coordinator_digests SET coordinator_id = %(new_id)s WHERE coordinator_id = %(id)s
)
UPDATE coordinators SET id = %(new_id)s WHERE id = %(id)s
