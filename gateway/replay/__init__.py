"""Offline tools on the same rooms: demo provider, data split, history seeding."""
