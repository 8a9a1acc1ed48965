"""The choice of an account for a job, and of how much each account takes. Pure, like schedule/."""
