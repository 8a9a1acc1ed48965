"""What people see: metrics, journal, logs. Listeners and snapshots only."""
