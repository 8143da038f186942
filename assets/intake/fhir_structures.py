"""What is read of a FHIR resource, as DuckDB's JSON structures; anything else in a line is never looked at.

Not here: what becomes of it (`fhir`, `fhir_consent`).
"""

from __future__ import annotations

from typing import Any, Final

_CODING: Final = '{"coding":[{"system":"VARCHAR","code":"VARCHAR"}]}'
_REFERENCE: Final = '{"reference":"VARCHAR"}'
_NESTED_EXTENSION: Final = '[{"url":"VARCHAR","extension":[{"url":"VARCHAR","valueCoding":{"code":"VARCHAR"}}]}]'
_PERIOD: Final = '{"start":"VARCHAR","end":"VARCHAR"}'
_HEAD: Final = '"resourceType":"VARCHAR","id":"VARCHAR","meta":{"lastUpdated":"VARCHAR","versionId":"VARCHAR"}'

_RULE: Final = f"""\"modifierExtension":["JSON"],"type":"VARCHAR","period":{_PERIOD},"code":[{_CODING}],
        "actor":["JSON"],"purpose":["JSON"],"data":["JSON"],"class":["JSON"],"securityLabel":["JSON"],"dataPeriod":"JSON\""""

STRUCTURES: Final = {
    "Patient": f"""{{{_HEAD},"birthDate":"VARCHAR","gender":"VARCHAR",
        "deceasedDateTime":"VARCHAR","address":[{{"use":"VARCHAR","type":"VARCHAR","country":"VARCHAR","postalCode":"VARCHAR"}}],
        "identifier":[{{"system":"VARCHAR","value":"VARCHAR"}}],"link":[{{"type":"VARCHAR"}}]}}""",
    "Encounter": f"""{{{_HEAD},"status":"VARCHAR","class":{{"code":"VARCHAR"}},
        "type":[{_CODING}],"partOf":{_REFERENCE},"subject":{_REFERENCE},"period":{_PERIOD},
        "serviceType":{_CODING},"extension":{_NESTED_EXTENSION},
        "hospitalization":{{"admitSource":{_CODING},"dischargeDisposition":{{"extension":{_NESTED_EXTENSION}}}}},
        "diagnosis":[{{"condition":{_REFERENCE},"use":{_CODING},"rank":"INTEGER"}}]}}""",
    "Condition": f"""{{{_HEAD},"subject":{_REFERENCE},"encounter":{_REFERENCE},
        "verificationStatus":{_CODING},"code":{{"coding":[{{"system":"VARCHAR","code":"VARCHAR",
        "extension":[{{"url":"VARCHAR","valueCoding":{{"code":"VARCHAR"}}}}]}}]}}}}""",
    "Procedure": f"""{{{_HEAD},"status":"VARCHAR","subject":{_REFERENCE},
        "encounter":{_REFERENCE},"code":{_CODING},"performedDateTime":"VARCHAR","performedPeriod":{_PERIOD}}}""",
    "Consent": f"""{{{_HEAD},"status":"VARCHAR",
        "patient":{{"reference":"VARCHAR","identifier":{{"system":"VARCHAR","value":"VARCHAR"}}}},
        "dateTime":"VARCHAR","policy":[{{"uri":"VARCHAR"}}],"category":[{_CODING}],"modifierExtension":["JSON"],
        "provision":{{{_RULE},"provision":[{{{_RULE},"provision":[{{"type":"VARCHAR","period":{_PERIOD},"code":[{_CODING}],"provision":["JSON"]}}]}}]}}}}""",
}
ENTRY: Final = '{"fullUrl":"VARCHAR","resource":"JSON","request":{"method":"VARCHAR","url":"VARCHAR"}}'
BUNDLE_STRUCTURE: Final = f'{{"resourceType":"VARCHAR","entry":[{ENTRY}]}}'
OUTCOME_STRUCTURE: Final = '{"resourceType":"VARCHAR","issue":[{"severity":"VARCHAR"}]}'


def type_of(of: Any) -> str:
    """A structure of `from_json` as a type."""
    if isinstance(of, list):
        return f"{type_of(of[0])}[]"
    if isinstance(of, dict):
        parts = ", ".join(f'"{name}" {type_of(part)}' for name, part in of.items())
        return f"STRUCT({parts})"
    return str(of)
