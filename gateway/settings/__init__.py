"""Settings: gateway.toml as typed structs, validated whole and swapped whole."""
