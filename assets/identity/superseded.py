"""Stored cases whose new version was quarantined: they are not counted until a valid version comes.

The clinic has replaced the stored version, and the replacement cannot be used. Counting the old one would be a guess,
and would differ from a city that never saw it; erasing it would go too far, because the consent stands and a corrected
delivery brings the case back. So the old version is stored again, on the new day, as one that is not counted. What is
frozen by then stays. Not here: cases that a clinic deleted (`deleted`), patients who withdrew (`erasure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.codes import CARE_UNCOUNTED
from assets.contract.schemas import CASES, PSEUDONYMISED_CASES, only
from assets.identity.pseudonyms import case_keys
from assets.lake.distribute import in_order
from assets.lake.engine import connect, load
from assets.lake.lake import Lake

_QUARANTINED: Final = only(CASES, "clinic", "arrival_day", "case_id")
_CASE_KEY: Final = only(PSEUDONYMISED_CASES, "case_key")
# Every column takes part, so that of versions of one day always the same is taken. What comes late is superseded where all
# that came since, after the days of this run, is in quarantine; a day of this run has a row of its own that says so.
_SQL: Final = f"""
WITH due AS (
  SELECT DISTINCT k.key AS case_key, q.arrival_day FROM quarantined q JOIN keys k ON k.clinic = q.clinic AND k.id = q.case_id),
before AS (
  SELECT v.* REPLACE (d.arrival_day AS arrival_day)
  FROM (FROM due ANTI JOIN fresh USING (case_key, arrival_day) WHERE arrival_day <= $last) d
  JOIN versions v ON v.case_key = d.case_key AND v.arrival_day < d.arrival_day
  QUALIFY row_number() OVER (PARTITION BY d.case_key, d.arrival_day
    ORDER BY v.arrival_day DESC, {", ".join(f"v.{n}" for n in PSEUDONYMISED_CASES.names if n != "arrival_day")}) = 1),
newest AS (SELECT case_key, max(arrival_day) AS arrival_day FROM versions GROUP BY ALL)
SELECT * REPLACE ('{CARE_UNCOUNTED}' AS care) FROM before WHERE care <> '{CARE_UNCOUNTED}'
UNION ALL
SELECT f.* REPLACE (CASE WHEN n.case_key IS NULL THEN care ELSE '{CARE_UNCOUNTED}' END AS care) FROM fresh f
LEFT JOIN (FROM newest SEMI JOIN due ON due.case_key = newest.case_key
  AND due.arrival_day > greatest(newest.arrival_day, $last)) n
USING (case_key, arrival_day)"""


def with_superseded(lake: Lake, days: Sequence[date], cases: pa.Table) -> pa.Table:
    """`cases` (`PSEUDONYMISED_CASES` of this run of `days`) with an uncounted version of each case that was known before
    and of which one of these days brought nothing but a version in quarantine."""
    later = [day for day in lake.days("quarantine/cases") if day > days[-1]]
    quarantined = lake.read("quarantine/cases", _QUARANTINED, [*days, *later])
    if not quarantined.num_rows:
        return cases
    keys = case_keys(quarantined, lake.keys)
    stored = lake.read("cases", _CASE_KEY).column("case_key")
    theirs = pc.is_in(stored, value_set=keys.column("key").combine_chunks())
    known = lake.read("cases", PSEUDONYMISED_CASES, where=theirs.to_numpy())
    known = known.filter(pc.invert(pc.is_in(known.column("arrival_day"), pa.array(days, pa.date32()))))
    asked = pc.is_in(cases.column("case_key"), value_set=keys.column("key").combine_chunks())
    now = cases.filter(asked)
    with connect() as con:
        load(con, quarantined=quarantined, keys=keys, versions=pa.concat_tables([known, now]), fresh=now)
        told = con.execute(_SQL, {"last": days[-1]}).to_arrow_table().cast(PSEUDONYMISED_CASES)
    return in_order(pa.concat_tables([cases.filter(pc.invert(asked)), told]), ("arrival_day", "case_key"))
