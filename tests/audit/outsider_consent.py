"""What a clinic's patients permit and deny on a day: a slow answer in plain Python.

Written from consent.md and docs/onboarding.md, never with the code of `assets`. Here: versions of documents, whom they are of,
and the consent rule. Not here: what follows for cases (`outsider_answer`), how documents are written (`outsider_read`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from typing import Final

from outsider_read import Delivery, Document, Provision
from outsider_world import birthday

GUARDIAN_UNTIL: Final = 18
Place = tuple[date, int]
"""Day and place in the day of a delivery."""
Landed = Mapping[date, list[Delivery]]


def _end_of(declared: datetime, by_day: bool) -> datetime:
    """When a denial or a revocation was declared: of a day without a time, its end."""
    return datetime.combine(declared, time.max) if by_day else declared


@dataclass
class Statements:
    """What one patient permits and denies, as it stands on a day."""

    permits: list[Provision] = field(default_factory=list)
    denies: list[Provision] = field(default_factory=list)

    def _last(self, provisions: Iterable[Provision], code: str, day: date) -> datetime | None:
        return max(
            (
                p.declared
                for p in provisions
                if p.code in (code, "*") and (p.first or date.min) <= day <= (p.last or date.max)
            ),
            default=None,
        )

    def permit(self, code: str, day: date) -> bool:
        """Whether the last permit of `code` on `day` was declared after the last denial."""
        permitted, denied = self._last(self.permits, code, day), self._last(self.denies, code, day)
        return permitted is not None and (denied is None or permitted > denied)

    def cover(self, admitted: date | None, left: date | None, today: date) -> bool:
        if admitted is None or not self.stand(today):
            return False
        last = max(admitted, left or today)
        return all(self.permit("6", admitted + timedelta(n)) for n in range((last - admitted).days + 1))

    def stand(self, today: date) -> bool:
        return self.permit("7", today) and self.permit("8", today)

    def ended(self, today: date) -> bool:
        """Withdrawn or run out, not only short of a further document: everything of the patient has to go."""
        missing = [code for code in "78" if not self.permit(code, today)]
        denied = any(self._last(self.denies, code, today) for code in missing)
        lasting = {code: [p.last or today for p in self.permits if p.code == code] for code in "78"}
        over = any(days and max(days) < today for days in lasting.values())
        return bool(missing) and (denied or over or not self.permits)


def in_order(landed: Landed) -> list[tuple[Place, Delivery]]:
    return [((day, n), one) for day, deliveries in sorted(landed.items()) for n, one in enumerate(deliveries)]


def name_owners(landed: Landed, days: Iterable[date]) -> None:
    """Give every document of `days` that names only a case the patient whom its delivery, else the newest before, names."""
    owners: dict[str, str] = {}
    for (day, _), delivery in in_order(landed):
        owners |= {c.id: c.patient for c in delivery.contacts.values()}
        if day in days:
            delivery.documents = {
                key: replace(d, patient=owners.get(d.of_case, "")) if d.of_case else d
                for key, d in delivery.documents.items()
            }


@dataclass
class Versions:
    """The versions of one document, in the order in which they came; `said`: (place, version, only what it takes back)."""

    said: list[tuple[Place, Document, bool]] = field(default_factory=list)
    deleted: list[Place] = field(default_factory=list)

    def add(self, place: Place, document: Document, since: Place | None) -> None:
        """`since`: place of the whole export that this one's changes build upon; None where it is no export of changes."""
        newer = since and any(
            p >= since and d.updated and document.updated and d.updated > document.updated for p, d, _ in self.said
        )
        self.said.append((place, document, bool(newer)))

    def newest(self) -> tuple[Place, Document] | None:
        place, document, _ = max((v for v in self.said if not v[2]), key=lambda v: v[0])
        return None if any(gone >= place for gone in self.deleted) else (place, document)

    def ended(self) -> list[datetime]:
        """When it was revoked or deleted: what was not declared after that grants nothing any more."""
        revoked = [_end_of(d.declared, d.by_day) for _, d, _ in self.said if d.status != "active"]
        return revoked + [datetime.combine(day, time.min) for day, _ in self.deleted]


def _documents(landed: Landed, remembered: Iterable[tuple[date, Document]]) -> dict[str, Versions]:
    """Id → versions. A document of a table is known by its patient and when it was signed, however a row names the patient."""
    found: dict[str, Versions] = defaultdict(Versions)
    for day, document in remembered:
        found[document.known_as].add((day, -1), document, None)
    whole: Place = (date.min, 0)
    for place, delivery in in_order(landed):
        whole = whole if delivery.changes else place
        for document in delivery.documents.values():
            if document.patient:
                found[document.known_as].add(place, document, whole if delivery.changes else None)
        for kind, name in delivery.deleted:
            if kind == "Consent":
                found[name].deleted.append(place)
    return found


def statements(
    landed: Landed,
    remembered: Iterable[tuple[date, Document]],
    full: bool,
    births: Mapping[str, Mapping[date, tuple[date, date]]],
    today: date,
) -> dict[str, Statements]:
    """Patient → statements, from every document that any delivery brought or that is remembered of who was erased."""
    found: dict[str, Statements] = defaultdict(Statements)
    newest_full = max(
        (place for place, d in in_order(landed) if full and d.consents and not d.changes), default=(date.min, 0)
    )
    for versions in (v for v in _documents(landed, remembered).values() if v.said):
        newest, ended = versions.newest(), versions.ended()
        # A second delivery of a day corrects the first.
        of_days = [*{day: document for (day, _), document, _ in versions.said}.values()]
        for document in of_days:
            found[document.patient]  # whoever is named is judged
        if newest is None or newest[1].status != "active":
            continue
        place, document = newest
        for p in document.provisions:
            known = p.declared.date() <= today
            if p.permits and p.first and place >= newest_full and (not ended or (known and p.declared > max(ended))):
                found[document.patient].permits.append(
                    replace(p, last=p.last or today, declared=p.declared if known else datetime.min)
                )
        for d, p in ((v, p) for v in of_days if v.status == "active" for p in v.provisions):
            if not p.permits:  # whose denial it was it stays, though the document may be another's by now
                unread = {} if p.first else {"code": "*", "first": date.min, "last": None}
                found[d.patient].denies.append(replace(p, declared=_end_of(p.declared, p.by_day), **unread))
    for patient, born in births.items():
        if born and patient in found:
            first, last = born[max(born)]
            of_age = datetime.combine(birthday(last, GUARDIAN_UNTIL), time.min) - timedelta(microseconds=1)
            found[patient].denies.append(Provision(False, "*", birthday(first, GUARDIAN_UNTIL), None, of_age))
    return found
