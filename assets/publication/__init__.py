"""Open data: indicators from the consistent estimates, immutable release bundles, the analyst database."""
