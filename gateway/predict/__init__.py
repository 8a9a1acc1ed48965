"""Forecasts of output length. Synchronous CPU work, but for `process/`, which runs it."""
