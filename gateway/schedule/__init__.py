"""Which job starts next. Pure: no clock, loop, lock, log or metric (DESIGN.md, pattern 1)."""
