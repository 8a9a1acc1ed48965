"""Mirrors the room of the same name, on a virtual clock."""
