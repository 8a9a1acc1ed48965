"""SQLite behind one writer thread: history, submitted jobs, learned state."""
