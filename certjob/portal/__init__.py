"""The saga of portal visibility: queue a wish, push it, settle it, keep what is unfinished visible."""
