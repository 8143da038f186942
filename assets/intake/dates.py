"""Days and times in CSV, as people, spreadsheets and hospital systems write them, as SQL macros.

`moment(t)`: 2025-01-31, 31.01.2025 or 20250131, with or without a time; a time with an offset is converted to the
city's. `day(t)`: its calendar day there. Anything else is NULL, also a two-digit year (it would be the year 25) and the
hour 24 (the end of that day to some, of the next to others).
"""

from __future__ import annotations


def macros(time_zone: str) -> str:
    """SQL that defines `moment` and `day` for a city's `time_zone`."""
    zone = time_zone.replace("'", "")
    return f"""
    CREATE OR REPLACE TEMP MACRO written(t) AS CASE
      WHEN NOT regexp_matches(t, '^[0-9]') OR regexp_matches(t, '[ T]24:') THEN NULL
      WHEN regexp_matches(t, ':[0-9.:]+(Z|[+-][0-9]{{2}}(:?[0-9]{{2}})?)$') THEN timezone('{zone}', try_cast(t AS TIMESTAMPTZ))
      ELSE coalesce(try_cast(t AS TIMESTAMP),
        try_strptime(t, ['%d.%m.%Y', '%d.%m.%Y %H:%M', '%d.%m.%Y %H:%M:%S', '%Y%m%d%H%M', '%Y%m%d'])) END;
    CREATE OR REPLACE TEMP MACRO moment(t) AS CASE WHEN year(written(t)) >= 1900 THEN written(t) END;
    CREATE OR REPLACE TEMP MACRO day(t) AS CAST(moment(t) AS DATE);
    """
