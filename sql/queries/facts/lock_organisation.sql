-- Two people who set up the same organisation take turns; its coordinators are guarded by the same lock.
SELECT id FROM organisations WHERE slug = %(slug)s FOR NO KEY UPDATE
