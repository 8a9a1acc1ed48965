"""The built-in demo provider and the demo history."""
