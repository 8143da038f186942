"""Where files lie, how they are written so that a crash leaves no half, and how they are kept secret."""
