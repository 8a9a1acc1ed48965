"""The choice of the job that starts next. Pure: no clock, loop, lock, log or metric."""
