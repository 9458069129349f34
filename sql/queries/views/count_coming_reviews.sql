-- How many mentors each of the coming nights will look at; today's has whoever is overdue, too. One range of one index.
SELECT greatest(review_on, %(today)s::date) AS due_on, count(*) AS mentors
FROM mentors
WHERE review_on < %(until)s
GROUP BY greatest(review_on, %(today)s::date)
