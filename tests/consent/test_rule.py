"""The consent rule, hole by hole, and the real test data patient by patient."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from assets.consent.majority import coming_of_age, known
from assets.consent.reasons import REASONS
from assets.consent.rule import FULL_EXPORTS, decide, keep_permitted, standing
from assets.consent.stage import decision_table
from assets.contract.city import Clinic, ConsentRule
from assets.contract.codes import (
    CONSENT_CODE_SYSTEM,
    CONSENT_COLLECT,
    CONSENT_RETROSPECTIVE,
    CONSENT_STORE,
    CONSENT_USE,
)
from assets.contract.schemas import CANONICAL, CASES, CONSENT_PROVISIONS
from assets.intake import fhir
from assets.intake.connector import Export
from assets.intake.findings import Findings
from assets.lake.engine import connect

RULE = ConsentRule(decided_by="test", decided_on=None, note="")
TODAY = date(2025, 6, 1)
CODES = (CONSENT_COLLECT, CONSENT_STORE, CONSENT_USE)
FROM, TO = date(2025, 1, 1), date(2030, 1, 1)


def provision(code: str = CONSENT_USE, decision: str = "permit", **over: Any) -> dict[str, Any]:
    row = {
        "clinic": "k", "arrival_day": FROM, "export_id": "e", "source_file": "f", "source_line": 1, "patient_id": "p",
        "consent_id": "c", "status": "active", "declared_at": datetime(2025, 1, 1, 12), "policy_uri": None,
        "code": code, "decision": decision, "valid_from": FROM, "valid_to": TO, "period_readable": True,
    }  # fmt: skip
    return row | over


def permits(**over: Any) -> list[dict[str, Any]]:
    return [provision(code, **over) for code in CODES]


def reason(
    provisions: list[dict[str, Any]],
    first: date = date(2025, 2, 1),
    last: date | None = date(2025, 2, 5),
    rule: ConsentRule = RULE,
    full: pa.Table | None = None,
    majority: pa.Table | None = None,
) -> str:
    case = {"clinic": "k", "arrival_day": FROM, "export_id": "e", "source_file": "f", "source_line": 1, "case_id": "x",
            "patient_id": "p", "admitted_on": first, "discharged_on": last}  # fmt: skip
    cases = pa.Table.from_pylist([case], schema=CASES)
    register = pa.Table.from_pylist(provisions, schema=CONSENT_PROVISIONS)
    return decide(cases, register, rule, TODAY, full, majority).column("reason")[0].as_py()


def deny(**over: Any) -> list[dict[str, Any]]:
    return [provision(c, "deny", **({"consent_id": "d", "declared_at": datetime(2025, 3, 1)} | over)) for c in CODES]


MOMENT = timedelta(microseconds=1)
BIRTH = {"clinic": "k", "arrival_day": FROM, "patient_id": "p", "birth_year": 2007, "birth_month": 5, "birth_day": 20}


def of_age(case: dict[str, Any] | None = None, **birth: Any) -> pa.Table:
    """Majority at 18 of a patient of the register, as intake delivers the birth: here 20 May 2025."""
    persons = pa.Table.from_pylist([BIRTH | birth], schema=CANONICAL["persons"])
    cases = pa.Table.from_pylist([BIRTH | case] if case else [], schema=CASES)
    register = pa.Table.from_pylist(permits(), schema=CONSENT_PROVISIONS)
    return known(coming_of_age(persons, cases, register, 18))


def test_a_guardians_consent_ends_on_the_day_of_coming_of_age():
    assert reason(permits(), majority=of_age()) == "guardian_consent_ended"
    assert reason(permits(), majority=of_age(birth_month=6, birth_day=2)) == "permitted", "of age tomorrow"
    assert reason(permits(), majority=of_age(birth_month=6, birth_day=1)) == "guardian_consent_ended", "of age today"
    assert stands(permits(), of_age()) == (False, "guardian_consent_ended", True)


def test_what_the_young_adult_signs_counts_from_that_day():
    own = {"consent_id": "own", "valid_from": date(2025, 5, 20)}
    assert reason(permits() + permits(**own, declared_at=datetime(2025, 5, 20, 9)), majority=of_age()) == "permitted"
    assert (
        reason(permits() + permits(**own, declared_at=datetime(2025, 5, 19, 9)), majority=of_age())
        == "guardian_consent_ended"
    )
    for signed, why in (
        (datetime(2025, 5, 20), "permitted"),  # a day without a time
        (datetime(2025, 5, 20) - MOMENT, "guardian_consent_ended"),
    ):
        assert reason(permits() + permits(**own, declared_at=signed), majority=of_age()) == why
    # A stay that began before the birthday is covered by the guardian until then, and by the own consent from then on.
    both = permits() + permits(**own, declared_at=datetime(2025, 5, 20, 9))
    assert reason(both, date(2025, 5, 18), date(2025, 5, 22), majority=of_age()) == "permitted"
    late = permits() + permits(consent_id="own", valid_from=date(2025, 5, 21), declared_at=datetime(2025, 5, 21, 9))
    assert reason(late, date(2025, 5, 18), date(2025, 5, 22), majority=of_age()) == "case_outside_collection_window"
    assert reason(permits(declared_at=None), majority=of_age(birth_year=1980)) == "guardian_consent_ended", (
        "nobody knows when"
    )
    assert reason(permits(), majority=of_age(birth_year=1980)) == "permitted"


def test_a_withdrawal_after_coming_of_age_is_called_a_withdrawal():
    denied = deny(valid_from=date(2025, 5, 25), valid_to=None, declared_at=datetime(2025, 5, 25))
    assert reason(permits() + denied, majority=of_age()) == "withdrawn"
    assert reason([provision(decision="deny")], majority=of_age()) == "withdrawn", "nothing was ever permitted"


def test_of_an_incomplete_birth_the_earliest_day_ends_and_the_latest_begins():
    year = {"birth_month": None, "birth_day": None}
    assert reason(permits(), majority=of_age(**year)) == "guardian_consent_ended"  # may be of age since January
    for signed, why in (
        (datetime(2025, 5, 31), "guardian_consent_ended"),
        (datetime(2025, 2, 1), "guardian_consent_ended"),
    ):
        assert reason(permits(declared_at=signed), majority=of_age(**year)) == why
    assert reason(permits(declared_at=datetime(2025, 2, 1)), majority=of_age(**year, birth_year=2006)) == "permitted"
    last = {"birth_year": 2006, "birth_month": 12, "birth_day": None}
    assert reason(permits(declared_at=datetime(2024, 12, 31)), majority=of_age(**last)) == "permitted"
    assert reason(permits(declared_at=datetime(2024, 12, 30)), majority=of_age(**last)) == "guardian_consent_ended"
    assert reason(permits(), majority=of_age(birth_day=None, birth_month=6)) == "guardian_consent_ended"
    assert reason(permits(), majority=of_age(birth_day=None, birth_month=7)) == "permitted"
    # Without a year of birth, the age that a case states tells.
    told = {"case_id": "x", "admitted_on": date(2025, 2, 1)}
    assert reason(permits(), majority=of_age({**told, "age_years": 17}, birth_year=None)) == "guardian_consent_ended"
    assert reason(permits(), majority=of_age({**told, "age_years": 16}, birth_year=None)) == "permitted"
    # One impossible cell must not end everybody's run: quality sets the row aside.
    assert reason(permits(), majority=of_age({**told, "age_years": 32767}, birth_year=None)) == "permitted"


def test_born_on_the_29th_of_february_and_deliveries_that_contradict_each_other():
    (leap,) = of_age(birth_year=2008, birth_month=2, birth_day=29).to_pylist()
    assert (leap["of_age_from"], leap["of_age_by"]) == (date(2026, 2, 28), datetime(2026, 3, 1) - MOMENT)
    other = of_age(birth_year=2006)
    (span,) = known(pa.concat_tables([of_age(), other])).to_pylist()
    assert (span["of_age_from"], span["of_age_by"]) == (date(2024, 5, 20), datetime(2025, 5, 20) - MOMENT)
    corrected = of_age(birth_year=2006, arrival_day=FROM + timedelta(1))
    for order in ([of_age(), corrected], [corrected, of_age()]):
        assert known(pa.concat_tables(order)).to_pylist() == corrected.to_pylist(), "a correction counts"


def test_a_full_consent_permits():
    assert reason(permits()) == "permitted"


def test_without_any_consent_nothing_is_permitted():
    assert reason([]) == "no_consent"


def test_a_deny_without_end_withdraws_for_ever():
    assert reason(permits() + deny(valid_from=date(2025, 3, 1), valid_to=None)) == "withdrawn"


def test_a_recalculated_state_of_denies_until_3000_withdraws():
    assert reason(permits() + deny(valid_from=FROM, valid_to=date(3000, 1, 1))) == "withdrawn"


@pytest.mark.parametrize("status", ["inactive", "rejected", "entered-in-error", "draft", "proposed", None])
def test_only_an_active_document_grants(status: str | None):
    assert reason(permits(status=status)) == "document_not_active"


def test_a_newer_version_of_the_same_document_replaces_the_older():
    assert (
        reason(permits() + permits(status="inactive", arrival_day=date(2025, 3, 1), source_line=9))
        == "document_not_active"
    )


def test_an_old_version_delivered_again_takes_back_no_withdrawal():
    later = {"arrival_day": date(2025, 3, 1), "export_id": "f"}
    for withdrawal in (deny(consent_id="c", valid_to=None), permits(status="inactive")):
        assert reason(withdrawal + permits(**later)) in ("withdrawn", "document_not_active")
        anew = permits(**later, declared_at=datetime(2025, 4, 1))
        assert reason(withdrawal + anew) == "permitted"
    day_alone = permits(status="inactive", declared_at=datetime(2025, 1, 1))  # signed at noon, revoked on that day
    assert reason(day_alone + permits(**later)) == "document_not_active"


@pytest.mark.parametrize("status", ["inactive", "rejected", "entered-in-error"])
def test_a_revoked_document_needs_a_declaration_after_every_revocation(status: str):
    ends = [
        permits(status=status, declared_at=datetime(2025, month, 1), arrival_day=date(2025, month, 2))
        for month in (2, 4)
    ]
    between = permits(declared_at=datetime(2025, 3, 1), arrival_day=date(2025, 5, 1))
    after = permits(declared_at=datetime(2025, 4, 2), arrival_day=date(2025, 5, 1))
    undated = permits(declared_at=None, arrival_day=date(2025, 5, 1))
    assert [reason(ends[0] + ends[1] + last) for last in (between, after, undated)] == [
        "document_not_active", "permitted", "document_not_active",
    ]  # fmt: skip


@pytest.mark.parametrize("newer", [{"export_id": "f"}, {"source_file": "g"}, {"arrival_day": date(2025, 1, 2)}])
def test_the_newest_version_is_told_by_day_then_export_then_file(newer: dict[str, Any]):
    fewer = [p | newer for p in permits()[:2]]
    assert reason(permits() + fewer) == reason(fewer + permits()) == "not_permitted_on_evaluation_day"
    more = [p | newer for p in permits()]
    assert reason(permits()[:2] + more) == "permitted"


@pytest.mark.parametrize("form", [2718, 2720, 2722, 4053, 4054])
def test_every_version_of_the_full_withdrawal_and_of_the_refusal_denies(form: int):
    uri = f"urn:oid:2.16.840.1.113883.3.1937.777.24.2.{form}"
    stated = provision("*", "none", consent_id="d", declared_at=datetime(2025, 3, 1), policy_uri=uri)
    assert reason([*permits(), stated]) == "withdrawn"
    assert reason([*permits(), stated | {"policy_uri": uri.replace(str(form), "1790")}]) == "permitted"
    assert reason([*permits(), stated | {"policy_uri": f"{uri}0"}]) == "permitted"


def test_a_full_withdrawal_denies_whatever_is_nested_in_it():
    """The MII's own example denies one module; another denies what is none of ours, or is long over."""
    form = "urn:oid:2.16.840.1.113883.3.1937.777.24.2.2720"
    about = {"consent_id": "d", "declared_at": datetime(2025, 3, 1), "policy_uri": form}
    for nested in (provision(f"{CONSENT_CODE_SYSTEM}.25", "deny", **about), provision(CONSENT_USE, "deny", **about, valid_to=date(2025, 3, 1)),
                   provision(CONSENT_USE, **about)):  # fmt: skip
        assert reason([*permits(), nested]) == "withdrawn"
        assert reason([*permits(declared_at=datetime(2025, 3, 2)), nested]) == "permitted"


def test_a_denied_module_denies_what_is_part_of_it_and_a_permitted_one_permits_nothing():
    module, retrospective, others = (f"{CONSENT_CODE_SYSTEM}.{n}" for n in (1, 44, 18))
    assert reason([*permits(), *(d | {"code": module} for d in deny(valid_to=None))]) == "withdrawn"
    assert reason([*permits(), *(d | {"code": others} for d in deny(valid_to=None))]) == "permitted"
    assert reason([provision(module)]) == "not_permitted_on_evaluation_day"
    looking_back = RULE.model_copy(update={"retrospective_module": True})
    before = [provision(CONSENT_COLLECT, valid_from=date(2025, 2, 3)), provision(CONSENT_STORE), provision(CONSENT_USE),
              provision(f"{CONSENT_CODE_SYSTEM}.45")]  # fmt: skip
    assert reason(before, rule=looking_back) == "permitted"
    denied = [d | {"code": retrospective} for d in deny(valid_to=None)]
    assert reason([*before, *denied], rule=looking_back) == "case_outside_collection_window"


def test_a_withdrawal_entered_in_error_is_none():
    mistake = deny(valid_to=None) + deny(valid_to=None, status="entered-in-error", arrival_day=date(2025, 3, 2))
    assert reason(permits() + mistake) == "permitted"


def test_the_presence_of_a_code_is_no_permit():
    assert reason([provision(c, "deny") for c in CODES]) == "withdrawn"


def test_codes_may_stand_in_different_documents():
    assert reason([provision(c, consent_id=f"c{i}") for i, c in enumerate(CODES)]) == "permitted"


def test_every_required_code_is_needed():
    for missing in CODES:
        assert reason([provision(c) for c in CODES if c != missing]) != "permitted"


def test_the_last_declared_counts_not_the_last_in_file_order():
    old_deny = deny(declared_at=datetime(2024, 1, 1), valid_from=date(2024, 1, 1), valid_to=None)
    assert reason(permits() + old_deny) == "permitted"
    assert reason(old_deny + permits()) == "permitted"


def test_at_equal_time_deny_wins():
    assert reason(permits() + deny(declared_at=datetime(2025, 1, 1, 12), valid_to=None)) == "withdrawn"


@pytest.mark.parametrize(
    ("signed", "permitted"), [((1, 9), False), ((1, 23, 59, 59), False), ((2, 0), True), ((2, 9), True)]
)
def test_a_deny_of_which_only_the_day_is_known_was_declared_at_its_end(signed: tuple[int, ...], permitted: bool):
    denied = deny(declared_at=datetime(2025, 1, 1), valid_to=None)
    assert (reason(permits(declared_at=datetime(2025, 1, *signed)) + denied) == "permitted") == permitted


def test_a_deny_without_readable_period_denies_everything():
    unreadable = provision(CONSENT_USE, "deny", consent_id="d", valid_from=None, valid_to=None, period_readable=False)
    assert reason([*permits(), unreadable]) == "withdrawn"


def test_a_permit_without_readable_period_grants_nothing():
    assert reason(permits(valid_from=None, period_readable=False)) == "no_consent"


def test_a_permit_without_end_holds_until_the_evaluation_day():
    assert reason(permits(valid_to=None)) == "permitted"


def test_a_deny_without_declaration_time_counts_as_declared_last():
    assert reason(permits() + deny(declared_at=None, valid_to=None)) == "withdrawn"


def test_a_full_withdrawal_form_without_provisions_denies():
    form = provision("*", "none", consent_id="d", declared_at=datetime(2025, 3, 1), policy_uri="urn:oid:2.16.840.1.113883.3.1937.777.24.2.2718")  # fmt: skip
    assert reason([*permits(), form]) == "withdrawn"


def test_the_whole_case_must_lie_in_the_collection_window():
    collect = provision(CONSENT_COLLECT, valid_from=date(2025, 2, 3))
    others = [provision(CONSENT_STORE), provision(CONSENT_USE)]
    assert reason([collect, *others]) == "case_outside_collection_window"
    assert reason([collect, *others], first=date(2025, 2, 3), last=date(2025, 2, 3)) == "permitted"


def test_a_gap_in_the_collection_window_is_found_even_inside_a_case():
    gap = [
        provision(CONSENT_COLLECT, valid_to=date(2025, 2, 2), consent_id="a"),
        provision(CONSENT_COLLECT, valid_from=date(2025, 2, 4), consent_id="b"),
        provision(CONSENT_STORE), provision(CONSENT_USE),
    ]  # fmt: skip
    assert reason(gap) == "case_outside_collection_window"
    gap[1] = provision(CONSENT_COLLECT, valid_from=date(2025, 2, 3), consent_id="b")
    assert reason(gap) == "permitted"


def test_a_window_that_ends_with_the_case_holds_it_and_a_day_earlier_does_not():
    others = [provision(CONSENT_STORE), provision(CONSENT_USE)]
    for last, expected in (
        (5, "permitted"),
        (4, "case_outside_collection_window"),
        (3, "case_outside_collection_window"),
    ):
        assert reason([provision(CONSENT_COLLECT, valid_to=date(2025, 2, last)), *others]) == expected


@pytest.mark.parametrize("day", [1, 3, 5])
def test_a_deny_of_one_day_inside_the_case_is_found(day: int):
    one_day = provision(CONSENT_COLLECT, "deny", consent_id="d", valid_from=date(2025, 2, day), valid_to=date(2025, 2, day), declared_at=datetime(2025, 3, 1))  # fmt: skip
    assert reason([*permits(), one_day]) == "case_outside_collection_window"
    assert reason([*permits(), one_day | {"declared_at": datetime(2024, 3, 1)}]) == "permitted"


@pytest.mark.parametrize("other", [{"patient_id": "q"}, {"clinic": "l"}])
def test_nobody_profits_from_or_pays_for_the_consent_of_another(other: dict[str, str]):
    theirs = [p | other for p in permits()]
    assert reason(theirs) == "no_consent"
    assert reason([*permits(), *(d | other for d in deny(valid_to=None, consent_id="e"))]) == "permitted"
    gap = [provision(CONSENT_COLLECT, valid_to=date(2025, 2, 2)), *permits()[1:], *theirs]
    assert reason(gap) == "case_outside_collection_window"
    terminal = [p | other | {"status": "inactive", "consent_id": "c2"} for p in permits()]
    assert reason(permits() + terminal) == "permitted"


def test_both_ends_of_a_period_are_inclusive():
    assert reason(permits(valid_from=date(2025, 2, 1), valid_to=TODAY)) == "permitted"
    assert reason(permits(valid_to=date(2025, 5, 31))) == "consent_ended"


def test_only_rows_of_permitted_cases_go_on():
    case = {"clinic": "k", "arrival_day": FROM, "case_id": "x", "patient_id": "p", "admitted_on": date(2025, 2, 1), "discharged_on": date(2025, 2, 2)}  # fmt: skip
    cases = pa.Table.from_pylist([case, case | {"case_id": "y", "patient_id": "q"}], schema=CASES)
    tables = {n: s.empty_table() for n, s in CANONICAL.items()} | {"cases": cases}
    register = pa.Table.from_pylist(permits(), schema=CONSENT_PROVISIONS)
    kept = keep_permitted(tables, decide(cases, register, RULE, TODAY))
    assert kept["cases"].column("case_id").to_pylist() == ["x"]


def test_reaching_back_to_the_case_of_the_signature_is_a_choice_of_the_city():
    signed = permits(valid_from=date(2025, 2, 3), declared_at=datetime(2025, 2, 3, 9))
    reaching = RULE.model_copy(update={"reach_back_to_case_of_signature": True})
    assert reason(signed) == "case_outside_collection_window"
    assert reason(signed, rule=reaching) == "permitted"
    assert reason(signed, date(2025, 1, 20), date(2025, 2, 2), rule=reaching) == "case_outside_collection_window"
    denied = [*signed, provision(CONSENT_COLLECT, "deny", consent_id="d", valid_from=FROM, declared_at=datetime(2025, 2, 3, 9))]  # fmt: skip
    assert reason(denied, rule=reaching) == "case_outside_collection_window"


@pytest.mark.parametrize("other", [{"patient_id": "q"}, {"clinic": "l"}])
def test_only_the_own_case_of_the_signature_is_reached_back_to(other: dict[str, str]):
    signed = permits(valid_from=date(2025, 2, 3), declared_at=datetime(2025, 2, 3, 9))
    mine = {"clinic": "k", "arrival_day": FROM, "case_id": "x", "patient_id": "p", "admitted_on": date(2025, 1, 20), "discharged_on": date(2025, 1, 25)}  # fmt: skip
    theirs = mine | other | {"case_id": "y", "admitted_on": date(2025, 1, 1), "discharged_on": date(2025, 2, 5)}
    reaching = RULE.model_copy(update={"reach_back_to_case_of_signature": True})
    rows = decide(pa.Table.from_pylist([mine, theirs], schema=CASES), pa.Table.from_pylist(signed, schema=CONSENT_PROVISIONS), reaching, TODAY)  # fmt: skip
    assert not any(rows.column("permitted").to_pylist())


def test_the_retrospective_module_is_a_choice_of_the_city_and_of_the_patient():
    earlier = (date(2019, 2, 1), date(2019, 2, 2))
    module = [*permits(), provision(CONSENT_RETROSPECTIVE)]
    looking_back = RULE.model_copy(update={"retrospective_module": True})
    assert reason(module, *earlier) == "case_outside_collection_window"
    assert reason(module, *earlier, rule=looking_back) == "permitted"
    assert reason(permits(), *earlier, rule=looking_back) == "case_outside_collection_window"
    taken_back = [*module, provision(CONSENT_RETROSPECTIVE, "deny", consent_id="d", valid_to=None)]
    assert reason(taken_back, *earlier, rule=looking_back) == "case_outside_collection_window"
    assert reason(taken_back, rule=looking_back) == "permitted"


def test_a_consent_gone_from_the_newest_full_export_grants_nothing_but_still_denies():
    full = pa.table({"clinic": ["k"], "day": [date(2025, 3, 1)], "export_id": ["k:2"]}, schema=FULL_EXPORTS)
    assert reason(permits(), full=full) == "document_not_active"
    newest = {"arrival_day": date(2025, 3, 1), "export_id": "k:2"}
    assert reason(permits(**newest), full=full) == "permitted"
    assert reason(permits(**newest | {"export_id": "k:1"}), full=full) == "document_not_active"  # first of that day
    assert reason(permits(**newest) + deny(valid_to=None), full=full) == "withdrawn"


def test_consents_may_arrive_one_by_one_on_different_days():
    days = [provision(c, consent_id=f"c{i}", arrival_day=date(2025, 1, 1 + i)) for i, c in enumerate(CODES)]
    assert reason(days[:2]) == "not_permitted_on_evaluation_day" and reason(days) == "permitted"


def stands(provisions: list[dict[str, Any]], majority: pa.Table | None = None) -> tuple[bool, str, bool]:
    register = pa.Table.from_pylist(provisions, schema=CONSENT_PROVISIONS)
    (row,) = standing(register, RULE, TODAY, majority=majority).to_pylist()
    return row["ok"], row["reason"], row["erase"]


def test_who_withdrew_or_ended_is_erased_and_who_lacks_a_document_is_not():
    assert stands(permits()) == (True, "permitted", False)
    assert stands(permits() + deny(valid_to=None)) == (False, "withdrawn", True)
    assert stands(permits(status="inactive")) == (False, "document_not_active", True)
    assert stands(permits(valid_to=date(2025, 5, 31))) == (False, "consent_ended", True)
    assert stands(permits()[:2]) == (False, "not_permitted_on_evaluation_day", False)
    assert stands(permits(valid_to=None)[:2]) == (False, "not_permitted_on_evaluation_day", False)
    assert stands([provision(CONSENT_STORE, valid_to=date(2025, 5, 31)), provision(CONSENT_USE)])[1:] == (
        "consent_ended",
        True,
    )
    assert stands([provision(CONSENT_COLLECT)]) == (False, "not_permitted_on_evaluation_day", False)
    twice = [provision(CONSENT_STORE, valid_to=date(2025, 5, 1)), provision(CONSENT_STORE, consent_id="b")]
    assert stands(twice) == (False, "not_permitted_on_evaluation_day", False)
    assert stands([*permits(), deny(valid_to=None)[2]]) == (False, "withdrawn", True)
    assert stands(permits(valid_from=date(2025, 7, 1))) == (False, "not_permitted_on_evaluation_day", False)


@pytest.mark.parametrize("other", [{"patient_id": "q"}, {"clinic": "l"}])
def test_the_standing_of_one_says_nothing_of_another(other: dict[str, str]):
    def of_p(rows: list[dict[str, Any]]) -> tuple[str, bool]:
        found = standing(pa.Table.from_pylist(rows, schema=CONSENT_PROVISIONS), RULE, TODAY).to_pylist()
        return next((r["reason"], r["erase"]) for r in found if (r["clinic"], r["patient_id"]) == ("k", "p"))

    refused = [provision("*", "none")]
    assert of_p([*refused, *(p | other | {"consent_id": "o"} for p in permits())]) == ("no_consent", True)
    assert of_p([*refused, *(p | other | {"consent_id": "o", "status": "draft"} for p in permits())]) == (
        "no_consent",
        True,
    )


def test_every_reason_has_words_in_both_languages():
    assert all(de and en and de != en for de, en in REASONS.values())


def test_the_decision_table_for_auditors_counts_and_names_nobody():
    case = {"clinic": "k", "arrival_day": FROM, "case_id": "CANARY", "patient_id": "p", "admitted_on": date(2025, 2, 1), "discharged_on": date(2025, 2, 2)}  # fmt: skip
    cases = pa.Table.from_pylist([case, case | {"patient_id": "q"}], schema=CASES)
    decisions = decide(cases, pa.Table.from_pylist(permits(), schema=CONSENT_PROVISIONS), RULE, TODAY)
    table = decision_table(decisions, [FROM], TODAY)
    assert [(r["clinic"], r["reason"], r["cases"]) for r in table["rows"]] == [
        ("k", "permitted", 1),
        ("k", "no_consent", 1),
    ]
    assert "CANARY" not in str(table)


def test_decisions_on_the_real_input_as_worked_out_by_hand(shared: Path):
    folder = shared / "mii-kds-testdata"
    clinic = Clinic(key="mii", name="MII test data", format="fhir")
    export = Export(clinic, TODAY, "mii:1", folder)
    with connect([folder]) as con:
        tables = fhir.read(con, [export], Findings(), "Europe/Berlin")
    decisions = decide(tables["cases"], tables["consent_provisions"], RULE, TODAY)
    got = {r["patient_id"].removeprefix("mii-exa-test-data-"): r["reason"] for r in decisions.to_pylist()}
    assert got == {
        "patient-1": "case_outside_collection_window",  # stay 14–22 Feb 2024, collection from 23 Feb
        "patient-2": "case_outside_collection_window",  # stay 2–13 Mar 2024, collection from 14 Mar
        "patient-3": "case_outside_collection_window",  # stay 2–22 Apr 2022, collection from 14 Apr
        "patient-4": "permitted",
        "patient-5": "permitted",
        "patient-6": "permitted",
        "patient-7": "permitted",
        "patient-8": "consent_ended",  # every code ended on 15 Nov 2023
        "patient-9": "permitted",
        "patient-10": "permitted",
    } | {
        p: "no_consent"
        for p in (
            "bildgebung-patient-1", "dokument-patient-1", "icu-patient-1", "molgen-patient-1", "molgen-patient-2",
            "mtb-patient-1", "onko-patient-1", "patho-patient-1", "pro-patient-1", "seltene-patient-1",
            "studien-patient-1",
        )
    }  # fmt: skip


def test_a_permit_of_a_day_that_has_not_come_outlives_no_denial():
    """A slip of the year, 2052 for 2025, would else override every withdrawal until then."""
    slip = permits(declared_at=datetime(2052, 1, 1))
    assert reason(slip) == "permitted"
    assert reason(slip + deny(valid_from=date(2025, 3, 1), valid_to=None)) == "withdrawn"
    revoked = permits(status="inactive", arrival_day=date(2025, 1, 2))
    assert reason(revoked + permits(arrival_day=date(2025, 1, 3), declared_at=datetime(2052, 1, 1))) != "permitted"
    assert reason(revoked + permits(arrival_day=date(2025, 1, 3), declared_at=datetime(2025, 6, 1, 9))) == "permitted"
