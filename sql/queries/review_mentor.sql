-- A reminder was cancelled: the next night asks the rules of its own day whether another one is due.
UPDATE mentors SET review_on = '-infinity' WHERE id = %(id)s
