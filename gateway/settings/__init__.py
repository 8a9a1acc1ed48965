"""Settings: gateway.toml as typed structs, validated and swapped as one."""
