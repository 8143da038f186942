"""When a guardian's consent stops being enough: the day on which a minor comes of age.

Off unless the city file sets `consent.guardian_consent_ends_at`. Then whatever was signed for a minor counts as denied
on and from that birthday: only what the person signs later permits again. Where only the year or
month of birth is known, the denial begins on the earliest day that the birthday can be, and only what was signed
after the latest one counts as the person's own. Not here: the rule itself (`rule`), where it is stored (`stage`).
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from assets.lake.engine import connect, load

MAJORITY: Final = pa.schema(
    [
        ("clinic", pa.string()),
        ("arrival_day", pa.date32()),
        ("patient_id", pa.string()),
        ("of_age_from", pa.date32()),
        ("of_age_by", pa.timestamp("us")),
    ]
)
"""`of_age_from`: earliest possible birthday; `of_age_by`: last moment before the latest possible one, in local time.

A document with a day and no time counts as declared when that day begins: signed on the birthday, it is the person's.
"""

# A person without a year of birth: the age that a case states bounds it.
_SQL: Final = """
WITH born AS (
  SELECT p.clinic, p.arrival_day, p.patient_id,
    make_date(p.birth_year, coalesce(p.birth_month, 1), CASE WHEN p.birth_month IS NULL THEN 1 ELSE coalesce(p.birth_day, 1) END)
      AS first,
    CASE WHEN p.birth_month IS NOT NULL AND p.birth_day IS NOT NULL THEN make_date(p.birth_year, p.birth_month, p.birth_day)
      WHEN p.birth_month IS NOT NULL THEN last_day(make_date(p.birth_year, p.birth_month, 1))
      ELSE make_date(p.birth_year, 12, 31) END AS last
  FROM persons p WHERE p.birth_year IS NOT NULL
  UNION ALL
  SELECT c.clinic, c.arrival_day, c.patient_id, CAST(c.admitted_on - to_years(c.age_years::INTEGER + 1) AS DATE),
    CAST(c.admitted_on - to_years(CAST(c.age_years AS INTEGER)) AS DATE)
  FROM cases c ANTI JOIN (FROM persons WHERE birth_year IS NOT NULL) p USING (clinic, arrival_day, patient_id)
  WHERE c.age_years IS NOT NULL AND c.admitted_on IS NOT NULL)
SELECT clinic, arrival_day, patient_id, CAST(min(first) + to_years($age) AS DATE) AS of_age_from,
  -- Who was born on 29 February is of age on 1 March (BGB § 187).
  max(last + to_years($age) + to_days(CAST(dayofmonth(last + to_years($age)) <> dayofmonth(last) AS INTEGER)))
    - to_microseconds(1) AS of_age_by
FROM born SEMI JOIN register USING (clinic, patient_id) GROUP BY ALL ORDER BY ALL"""


def coming_of_age(persons: pa.Table, cases: pa.Table, register: pa.Table, age: int) -> pa.Table:
    """`MAJORITY` of the delivered persons who have a document in the register."""
    with connect() as con:
        load(con, persons=persons, cases=cases, register=register.select(["clinic", "patient_id"]))
        return con.execute(_SQL, {"age": age}).to_arrow_table().cast(MAJORITY)


def known(delivered: pa.Table) -> pa.Table:
    """One row for each patient of `delivered` (`MAJORITY`): of the newest day, so that a corrected birth date counts,
    and the widest span where that day contradicts itself."""
    with connect() as con:
        load(con, delivered=delivered)
        return con.execute(
            """SELECT clinic, arrival_day, patient_id, min(of_age_from) AS of_age_from, max(of_age_by) AS of_age_by
            FROM (FROM delivered QUALIFY rank() OVER (PARTITION BY clinic, patient_id ORDER BY arrival_day DESC) = 1)
            GROUP BY ALL ORDER BY ALL"""
        ).to_arrow_table().cast(MAJORITY)  # fmt: skip
