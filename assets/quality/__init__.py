"""Quality: which rows may be counted, which are set aside, and the proof of what was checked."""
