"""A phone through adb: how it is reached, what it says of itself, and the programs that run files there. No Python runs on it, so this machine drives it."""
