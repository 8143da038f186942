"""From a clinic's inbox to canonical tables: connectors that copy, readers that translate."""
