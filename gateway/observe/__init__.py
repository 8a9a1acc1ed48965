"""Metrics, journal and logs, for people. Everything comes from listeners and snapshots."""
