"""The HTTP client side: one stream to one account, its dialect, its SSE, its usage."""
