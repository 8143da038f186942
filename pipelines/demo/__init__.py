"""The demo city: a synthetic Darmstadt, delivered day by day as its clinics would."""
