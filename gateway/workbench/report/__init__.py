"""Report of what scheduling would have gained on observed traffic."""
