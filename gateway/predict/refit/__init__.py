"""Refits of the length models to the gateway's own history, in a process of their own."""
