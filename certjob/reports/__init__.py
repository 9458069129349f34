"""The commands that only look: alerts, explain, list, forecast, preview, status, check; pings."""
