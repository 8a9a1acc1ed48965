"""Tell from observed traffic what scheduling would have gained."""
