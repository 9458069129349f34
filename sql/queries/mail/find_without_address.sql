-- Which of these mentors no reminder can reach; as read_recipient sees an address.
SELECT m.id FROM mentors AS m WHERE m.id = ANY (%(ids)b::uuid[]) AND nullif(btrim(m.email), '') IS NULL
