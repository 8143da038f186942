"""What a FHIR Consent says, by the profile of the MII and as consent services write it.

Not here: what follows from it for a case (`consent.rule`), reading lines and versions (`fhir_load`).
"""

from __future__ import annotations

from typing import Final

import duckdb

from assets.contract.codes import CONSENT_CODE_SYSTEM, CONSENT_DOCUMENTS, CONSENT_MODULE_OF, until_sql
from assets.intake.fhir_load import PROVENANCE, Loader, allowed_id

# `misplaced`: one of the consent's codes under another code system, where it means something else or nothing. `narrowed`: to
# an actor, a purpose, or in a way that we do not know.
MACROS: Final = f"""
    CREATE MACRO bare(code) AS CASE WHEN starts_with(code, 'urn:oid:') THEN substr(code, 9) ELSE code END;
    CREATE MACRO misplaced(c) AS starts_with(bare(c.code), '{CONSENT_CODE_SYSTEM}.')
        AND coalesce(bare(lower(c.system)) <> '{CONSENT_CODE_SYSTEM}', false);
    CREATE MACRO narrowed(p) AS coalesce(len(p.modifierExtension) > 0, false) OR coalesce(len(p.actor) > 0, false)
        OR coalesce(len(p.purpose) > 0, false) OR coalesce(len(p.data) > 0, false) OR coalesce(len(p.class) > 0, false)
        OR coalesce(len(p.securityLabel) > 0, false) OR p.dataPeriod IS NOT NULL;
    """

FIELDS: Final = f"""
  ref_id(r.patient.reference, 'Patient') AS patient_id, r.patient.identifier AS named_by,
  r.status AS status, wall(r.dateTime) AS declared_at,
  nullif(array_to_string(list_concat(list_transform(r.policy, lambda p: p.uri), list_filter(list_transform(codings(r.category),
    lambda c: c.code), lambda c: starts_with(bare(c), '{CONSENT_DOCUMENTS}.') AND NOT ends_with(c, '.184'))), ' '), '') AS policy_uri,
  CASE WHEN len(r.provision.code) > 0 AND r.provision.type IS DISTINCT FROM 'permit' THEN struct_pack(type := r.provision.type,
    period := r.provision.period, code := r.provision.code) END AS root,
  len(r.modifierExtension) > 0 OR len(r.provision.modifierExtension) > 0 AS modified,
  list_concat(r.provision.provision, CASE WHEN len(r.provision.code) > 0 AND r.provision.type = 'permit' THEN
    [struct_update(r.provision, provision := NULL)] END) AS provisions"""
"""What is kept of each Consent: SQL over the parsed line `r`."""

# What is denied inside a permit counts as denied, and so does whatever is nested deeper than any profile allows; a denial
# whose code cannot be read denies every code (`*`). What the root denies by code, nested provisions may except; what it
# permits by code counts like a nested permit: so a consent service writes one document for each policy. What is
# narrowed (to an actor, a purpose) or has a modifier that we do not know (FHIR: then it must not be relied on) permits nothing.
# A consent that states nothing of ours still counts, whether it nests no provisions or those of other code systems:
# it is the newest version and may withdraw an earlier one (code `*`). So does a deleted one: it ends what its earlier
# versions granted, whoever the patient was.
CONSENT_SQL: Final = f"""
CREATE TEMP VIEW consent_provisions AS
WITH provisions AS (SELECT place, unnest(provisions) AS p FROM "Consent"),
nested AS (SELECT place, unnest(p.provision) AS n FROM provisions),
listed AS (
  SELECT place, p.type AS decision, p.period.start AS starts, p.period.end AS ends, p.code AS concepts,
    narrowed(p) AS narrow, [] AS excepted FROM provisions
  UNION ALL
  SELECT place, n.type, n.period.start, n.period.end, n.code, false, [] FROM nested WHERE n.type IS DISTINCT FROM 'permit'
  UNION ALL
  SELECT place, NULL, NULL, NULL, NULL, false, [] FROM nested WHERE len(n.provision) > 0
  UNION ALL
  SELECT place, root.type, root.period.start, root.period.end, root.code, false,
    flatten(list_transform(provisions, lambda p: flatten(list_transform(p.code, lambda c: list_transform(c.coding, lambda o: bare(o.code))))))
  FROM "Consent" WHERE root IS NOT NULL),
worded AS (SELECT *, flatten(list_transform(concepts, lambda c: c.coding)) AS codings FROM listed),
each_code AS (
  SELECT * EXCLUDE (concepts, codings), unnest(CASE WHEN len(codings) > 0 THEN list_transform(list_filter(codings,
      lambda c: NOT (decision IS NOT DISTINCT FROM 'permit' AND coalesce(misplaced(c), false))),
    lambda c: coalesce(c.code, '*')) ELSE ['*'] END) AS name FROM worded),
stated AS (
  SELECT place, bare(name) AS code, decision, local_day(starts) AS valid_from, local_day(ends) AS valid_to,
    ends IS NULL AS open, narrow
  FROM each_code LEFT JOIN "Consent_outdated" o USING (place)
  WHERE (name = '*' OR starts_with(bare(name), '{CONSENT_CODE_SYSTEM}.')) AND NOT coalesce(list_contains(excepted, bare(name)), false)
    AND NOT (o.file IS NOT NULL AND decision IS NOT DISTINCT FROM 'permit')),
versions AS (
  SELECT place, coalesce(patient_id, owner) AS patient_id, id AS consent_id, status, declared_at, policy_uri, coalesce(code, '*') AS code,
    CASE WHEN code IS NULL THEN 'none' ELSE decision END AS decision, valid_from, valid_to,
    (valid_from IS NOT NULL AND (open OR valid_to IS NOT NULL) AND NOT coalesce(modified OR narrow, false)) AS period_readable
  FROM "Consent" LEFT JOIN stated USING (place) LEFT JOIN owners USING (place))
SELECT {PROVENANCE}, v.* EXCLUDE (place) FROM "Consent" JOIN versions v USING (place)
UNION ALL
SELECT {PROVENANCE}, v.* EXCLUDE (place) FROM "Consent" JOIN newer USING (place) JOIN versions v ON v.place = newest
UNION ALL
SELECT DISTINCT ON (s.clinic, s.arrival_day, d.id) {", ".join("s." + c for c in PROVENANCE.split(", ")[:-1])},
  CAST(1 AS BIGINT), CAST(NULL AS VARCHAR), d.id, 'entered-in-error', CAST(NULL AS TIMESTAMP), CAST(NULL AS VARCHAR),
  '*', 'none', CAST(NULL AS DATE), CAST(NULL AS DATE), false
FROM deleted d JOIN sources s USING (file) WHERE d.kind = 'Consent' AND {allowed_id("d.id")};
"""


# Without `meta`, the version declared last counts; what is left open is decided against use, wherever a line stands. So is
# the time of day of a version that takes back, where it has none.
_RANK: Final = f"""CASE WHEN status = 'active' AND len(list_filter(provisions, lambda p: p.type IS DISTINCT FROM 'permit')) = 0
    THEN coalesce(declared_at, TIMESTAMP '0001-01-01')
    ELSE coalesce({until_sql("declared_at")}, TIMESTAMP '9999-01-01') END DESC, coalesce(status = 'active', false),
  coalesce(list_sum(list_transform(provisions, lambda p: CASE p.type WHEN 'permit' THEN len(p.code) ELSE -1 END)), 0)"""
# All but what only permits. It counts in whatever order it comes; what an outdated version permits does not, and it stands
# beside the newest version, which comes again with it: of a document the rule reads the permits of the last delivery.
_TAKES_BACK: Final = """coalesce(status <> 'active' OR root IS NOT NULL OR len(provisions) = 0
  OR len(list_filter(provisions, lambda p: p.type IS DISTINCT FROM 'permit' OR len(p.provision) > 0)) > 0, true)"""
_NEWER: Final = """
CREATE TEMP TABLE newer AS SELECT o.place, n.rowid AS newest
FROM "Consent_outdated" o JOIN "Consent_rows" r ON r.rowid = o.place JOIN sources s ON s.file = r.file
JOIN "Consent_rows" n ON n.id = r.id AND n.rowid NOT IN (SELECT place FROM "Consent_outdated")
JOIN sources b ON b.file = n.file AND b.arrival_day >= s.whole_since AND b.arrival_day < s.arrival_day
QUALIFY row_number() OVER (PARTITION BY o.place
  ORDER BY n.updated_at DESC NULLS LAST, n.version DESC NULLS LAST, b.arrival_day DESC, n.rowid DESC) = 1"""
_OF_NOBODY: Final = """SELECT place, file, source_line, named_by FROM "Consent" ANTI JOIN owners USING (place) WHERE patient_id IS NULL"""
_UNDATED: Final = """SELECT DISTINCT file, source_line FROM (SELECT file, source_line, unnest(provisions) AS p FROM "Consent")
WHERE local_day(p.period.start) IS NULL OR (p.period.end IS NOT NULL AND local_day(p.period.end) IS NULL)"""
_NARROWED: Final = """SELECT file, source_line FROM "Consent"
WHERE modified OR len(list_filter(provisions, lambda p: narrowed(p))) > 0"""

_OF_MODULE: Final = f"""SELECT DISTINCT file, source_line FROM (SELECT file, source_line, unnest(provisions) AS p FROM "Consent")
WHERE p.type = 'permit' AND len(list_filter(codings(p.code), lambda c: bare(c.code) IN {(*sorted({*CONSENT_MODULE_OF.values()}),)})) > 0"""
_MISPLACED: Final = """SELECT DISTINCT file, source_line FROM (SELECT file, source_line, unnest(provisions) AS p FROM "Consent")
WHERE len(list_filter(flatten(list_transform(p.code, lambda c: c.coding)), lambda c: misplaced(c))) > 0"""


def load_consents(con: duckdb.DuckDBPyConnection, loader: Loader, alone: bool) -> None:
    """Create `Consent`, and `owners` (place, owner) of those that name their patient by a number only.

    Such a number (`Consent.patient.identifier`) is one of `Patient.identifier`, of the same system; without patients
    (`alone`) nobody can be found by it.
    """
    loader.load("Consent", FIELDS, _RANK, _TAKES_BACK)
    con.execute(_NEWER)
    con.execute("CREATE TEMP TABLE owners (place BIGINT, owner VARCHAR)")
    if not alone and con.execute(f"FROM ({_OF_NOBODY}) WHERE named_by.value IS NOT NULL LIMIT 1").fetchone():
        loader.load("Patient", "r.identifier AS numbers")
        con.execute(
            f"""INSERT INTO owners SELECT DISTINCT c.place, p.id FROM ({_OF_NOBODY}) c
            JOIN (SELECT id, unnest(numbers) AS number FROM "Patient") p
              ON p.number.value = c.named_by.value AND p.number.system = c.named_by.system"""
        )
        loader.drop("Patient")
    loader.note("consent_of_nobody", _OF_NOBODY)
    loader.note("consent_date_unreadable", _UNDATED)
    loader.note("consent_narrowed", _NARROWED)
    loader.note("consent_code_foreign", _MISPLACED)
    loader.note("consent_code_of_module", _OF_MODULE)
