-- A reminder of a later day was cancelled: the next night asks the rules of its own day.
UPDATE mentors SET review_on = '-infinity' WHERE id = %(id)s
