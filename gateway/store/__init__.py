"""SQLite: submitted jobs and learned state behind one writer thread, history beside it."""
