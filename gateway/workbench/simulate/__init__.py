"""Simulation of scheduler and accounts on a virtual clock."""
