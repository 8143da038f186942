"""Where original identifiers end: keyed pseudonyms, one person over all clinics, coarser dates and places."""
