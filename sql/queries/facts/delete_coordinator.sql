-- A second row of the same person; the row with the app's user id takes over.
DELETE FROM coordinators WHERE id = %(id)s
