"""Play the deciding rooms on a virtual clock against providers of every shape."""
