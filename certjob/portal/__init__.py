"""The desired visibility on the portal: queue it, push it, settle it, keep what is unfinished visible."""
