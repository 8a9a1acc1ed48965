"""Which job starts next. Pure: no clock, loop, lock, log or metric."""
