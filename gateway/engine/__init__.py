"""The asyncio shell around the pure rooms: one writer, permits, the relay."""
