"""The commands that change something: the night in order, deliver, resync; what a run says of itself."""
