"""When and with what the assets run: definitions, environments, schedules, command line, demo city."""
