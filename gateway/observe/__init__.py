"""Metrics, journal and logs. Everything comes from listeners and snapshots."""
