"""Forecasts of output length. Synchronous CPU work on one thread; no asyncio."""
