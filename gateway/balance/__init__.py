"""Which account serves a job, and how much fits on it. Pure, like schedule/."""
