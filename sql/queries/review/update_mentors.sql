-- Last, in its own statement: from here on the mentor is not due any more.
UPDATE mentors AS m
SET review_on = CASE WHEN n.stays_due THEN m.review_on ELSE coalesce(n.review_on, 'infinity') END,
    portal_visible = CASE
        WHEN n.withdrawn THEN NULL  -- nobody knows what the portal shows: should it come back, push whatever is wanted
        WHEN n.push THEN n.visible
        ELSE m.portal_visible
    END
FROM unnest(
    %(ids)b::uuid[], %(review_dates)b::date[], %(stays_due)b::boolean[], %(push)b::boolean[], %(visible)b::boolean[],
    %(withdrawn)b::boolean[]
) AS n (id, review_on, stays_due, push, visible, withdrawn)
WHERE m.id = n.id
