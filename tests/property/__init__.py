"""State machines and models of the pure rooms: what must hold whatever happens."""
