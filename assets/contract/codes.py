"""Code lists and the few rules that belong to a code itself (check digit, chapter, age group).

Here: closed, public lists and pure functions over one code. Not here: how a source format spells a
code (`intake`), which rows break a rule (`quality`).
"""

from __future__ import annotations

from typing import Final

SEXES: Final = ("m", "w", "other")
"""Published categories; `other` joins divers, unspecified and unknown, which are too few to tell apart."""

CARE: Final = ("inpatient", "emergency_visit")
"""What is counted: inpatient facility contacts, and emergency visits that did not become one."""

CARE_UNCOUNTED: Final = "other"
"""Read and kept, but no indicator counts it (planned outpatient contacts, PIA, accompanying persons)."""

ENCOUNTER_CLASSES_UNCOUNTED: Final = (
    "AMB", "SS", "PRENC", "OBSENC", "HH", "FLD", "VR", "O", "P", "R", "B", "C", "N", "U",
)  # fmt: skip
"""Classes of contacts that no indicator counts: HL7 v3 ActEncounterCode, and of version 2 table 0004."""

CONTACT_KINDS_UNCOUNTED: Final = (
    "begleitperson", "vorstationaer", "nachstationaer", "teilstationaer", "tagesklinik", "nachtklinik",
)  # fmt: skip
"""Kontaktarten (`http://fhir.de/CodeSystem/kontaktart-de`) that no indicator counts, whatever their class."""

ADMISSION_TYPES: Final = ("emergency", "other")

CASE_STATUS: Final = ("in-progress", "finished", "planned", "cancelled", "entered-in-error", "unknown")
COUNTED_STATUS: Final = ("in-progress", "finished", "unknown")

# Lower bounds of the published age groups: unions of the five-year bands of the European Standard
# Population 2013, so that age-standardised rates stay possible.
AGE_GROUPS: Final[tuple[tuple[str, int, int | None], ...]] = (
    ("0-4", 0, 4),
    ("5-14", 5, 14),
    ("15-24", 15, 24),
    ("25-44", 25, 44),
    ("45-64", 45, 64),
    ("65-74", 65, 74),
    ("75-84", 75, 84),
    ("85+", 85, None),
)
AGE_GROUP_KEYS: Final = tuple(key for key, _, _ in AGE_GROUPS)
STANDARD_POPULATION: Final[dict[str, int]] = {
    "0-4": 5_000,
    "5-14": 11_000,
    "15-24": 11_500,
    "25-44": 26_500,
    "45-64": 26_500,
    "65-74": 10_500,
    "75-84": 6_500,
    "85+": 2_500,
}
"""European Standard Population 2013 (Eurostat, Revision of the European Standard Population), of 100,000."""
MAX_PLAUSIBLE_AGE: Final = 120

# ICD-10-GM chapters with their first and last category (BfArM, ICD-10-GM Systematik).
ICD_CHAPTERS: Final[tuple[tuple[str, str, str, str, str], ...]] = (
    ("I", "A00", "B99", "Infektiöse und parasitäre Krankheiten", "Infectious and parasitic diseases"),
    ("II", "C00", "D48", "Neubildungen", "Neoplasms"),
    ("III", "D50", "D90", "Blut und Immunsystem", "Blood and immune system"),
    ("IV", "E00", "E90", "Ernährung und Stoffwechsel", "Endocrine, nutritional and metabolic diseases"),
    ("V", "F00", "F99", "Psychische und Verhaltensstörungen", "Mental and behavioural disorders"),
    ("VI", "G00", "G99", "Nervensystem", "Nervous system"),
    ("VII", "H00", "H59", "Auge", "Eye"),
    ("VIII", "H60", "H95", "Ohr", "Ear"),
    ("IX", "I00", "I99", "Kreislaufsystem", "Circulatory system"),
    ("X", "J00", "J99", "Atmungssystem", "Respiratory system"),
    ("XI", "K00", "K93", "Verdauungssystem", "Digestive system"),
    ("XII", "L00", "L99", "Haut", "Skin"),
    ("XIII", "M00", "M99", "Muskel-Skelett-System", "Musculoskeletal system"),
    ("XIV", "N00", "N99", "Urogenitalsystem", "Genitourinary system"),
    ("XV", "O00", "O99", "Schwangerschaft und Geburt", "Pregnancy and childbirth"),
    ("XVI", "P00", "P96", "Perinatalperiode", "Perinatal period"),
    ("XVII", "Q00", "Q99", "Angeborene Fehlbildungen", "Congenital malformations"),
    ("XVIII", "R00", "R99", "Symptome und abnorme Befunde", "Symptoms and abnormal findings"),
    ("XIX", "S00", "T98", "Verletzungen und Vergiftungen", "Injury and poisoning"),
    ("XX", "V01", "Y84", "Äußere Ursachen", "External causes"),
    ("XXI", "Z00", "Z99", "Faktoren des Gesundheitszustandes", "Factors influencing health status"),
    ("XXII", "U00", "U99", "Schlüsselnummern für besondere Zwecke", "Codes for special purposes"),
)
CHAPTER_UNKNOWN: Final = "unknown"
"""A case without a readable principal diagnosis: a category of its own, so that chapters add up."""
CHAPTER_KEYS: Final = (*(key for key, *_ in ICD_CHAPTERS), CHAPTER_UNKNOWN)

ICD_PATTERN: Final = r"^[A-Z][0-9]{2}(\.[0-9]{1,3})?$"
"""ICD-10-GM code in dotted form without the suffixes † * ! and without terminal `-`."""
OPS_PATTERN: Final = r"^[1-9]-[0-9a-z]{2}[0-9a-z](\.[0-9a-z]{1,3})?$"
POSTAL_CODE_PATTERN: Final = r"^([0-9]{5}|[0-9]{2})$"

# §21 KHEntgG, Anlage: Aufnahmeanlass. B = accompanying person: not a patient.
AUFNAHMEANLASS: Final = ("E", "Z", "N", "R", "V", "A", "G", "B")
ADMISSION_REASONS_UNCOUNTED: Final = ("03", "04")
"""First two digits of the Aufnahmegrund: part of a day (teilstationär), and before a stay that did not come about.
For the set of §21, which has no other word for it: FHIR says it by class (`SS`, `PRENC`) or Kontaktart, and these count there."""
AUFNAHMEGRUND_PATTERN: Final = r"^(0[1-9]|10)[0-9]{2}$"
ENTLASSUNGSGRUND_PATTERN: Final = r"^[0-9]{2}[0-9]?$"

# Length of stay in days (discharge minus admission), lower bound of each published bin; the last is open.
LOS_BINS: Final[tuple[tuple[str, int, int | None], ...]] = (
    ("0", 0, 0),
    ("1", 1, 1),
    ("2", 2, 2),
    ("3", 3, 3),
    ("4", 4, 4),
    ("5", 5, 5),
    ("6-7", 6, 7),
    ("8-10", 8, 10),
    ("11-14", 11, 14),
    ("15-21", 15, 21),
    ("22-27", 22, 27),
    ("28+", 28, None),
)
LOS_BIN_KEYS: Final = tuple(key for key, _, _ in LOS_BINS)

OUTCOMES: Final = ("died", "other")
"""How a case ended: died in hospital (Entlassungsgrund 07), or anything else, a stay that goes on included."""

AREA_ELSEWHERE: Final = "elsewhere"
"""Area of every postal code that the city file does not list, of two-digit codes and of missing ones."""

# MII broad consent: code system OID and the provisions that matter here (MII modul-consent).
CONSENT_CODE_SYSTEM: Final = "2.16.840.1.113883.3.1937.777.24.5.3"
CONSENT_COLLECT: Final = f"{CONSENT_CODE_SYSTEM}.6"
CONSENT_STORE: Final = f"{CONSENT_CODE_SYSTEM}.7"
CONSENT_USE: Final = f"{CONSENT_CODE_SYSTEM}.8"
CONSENT_RETROSPECTIVE: Final = f"{CONSENT_CODE_SYSTEM}.45"
_MODULES: Final = {
    1: (2, 3, 4, 5, 6, 7, 8, 9, 37), 10: (11, 12, 13, 38), 14: (15, 16, 17, 39), 18: (19, 20, 21, 22, 23), 24: (25,), 26: (27, 28, 29),
    30: (31,), 44: (45, 46, 47), 48: (49,), 50: (51, 52, 53), 54: (55,),
}  # fmt: skip
CONSENT_MODULE_OF: Final = {
    f"{CONSENT_CODE_SYSTEM}.{part}": f"{CONSENT_CODE_SYSTEM}.{module}"
    for module, parts in _MODULES.items()
    for part in parts
}
"""Policy → the module that it is part of (CodeSystem MII CS Consent Policy 1.1.0, hierarchy `part-of`; without the
additional modules Z1 to Z5). A module is a question of the form; its policies have periods of their own."""
CONSENT_DOCUMENTS: Final = "2.16.840.1.113883.3.1937.777.24.2"
"""OIDs of the broad consent's documents (CodeSystem MII Consent Version and Modules 0.2.0)."""
CONSENT_TAKEN_BACK: Final = ("2718", "2720", "2722", "4053", "4054")
"""Of these documents, by version: Komplettwiderruf, and Ablehnung."""


def insured_id_is_valid(insured_id: str) -> bool:
    """Whether a KVNR (Krankenversichertennummer, letter and nine digits) has a correct check digit.

    The letter becomes its two-digit place in the alphabet; the ten digits so formed are weighted
    1 2 1 2 …, the digit sums added, and the sum modulo 10 is the last digit (§290 SGB V,
    GKV-Spitzenverband, Richtlinie zum Aufbau der Krankenversichertennummer).
    """
    if (
        len(insured_id) != 10
        or not ("A" <= insured_id[0] <= "Z")
        or not insured_id[1:].isascii()
        or not insured_id[1:].isdigit()
    ):
        return False
    digits = [int(d) for d in f"{ord(insured_id[0]) - 64:02d}{insured_id[1:9]}"]
    weighted = (d * (1 + place % 2) for place, d in enumerate(digits))
    return sum(w // 10 + w % 10 for w in weighted) % 10 == int(insured_id[9])


def chapter_case_sql(column: str) -> str:
    """SQL expression giving the ICD-10-GM chapter of the dotted code in `column`, `unknown` elsewhere."""
    arms = " ".join(
        f"WHEN left({column}, 3) BETWEEN '{first}' AND '{last}' THEN '{key}'" for key, first, last, *_ in ICD_CHAPTERS
    )
    return f"CASE {arms} ELSE '{CHAPTER_UNKNOWN}' END"


def until_sql(column: str) -> str:
    """SQL expression: the time in `column`, and the end of the day where it says a day without a time of day.

    Of what takes back: a withdrawal is often entered by its day alone, the signature of the same day with its time.
    """
    return (
        f"""CASE WHEN {column} = date_trunc('day', {column}) THEN {column} + INTERVAL 86399 SECOND ELSE {column} END"""
    )


def bin_case_sql(column: str, bins: tuple[tuple[str, int, int | None], ...]) -> str:
    """SQL expression giving the key of the bin that holds the integer in `column`; null stays null."""
    arms = " ".join(f"WHEN {column} <= {upper} THEN '{key}'" for key, _, upper in bins if upper is not None)
    open_key = next(key for key, _, upper in bins if upper is None)
    return f"CASE WHEN {column} IS NULL THEN NULL {arms} ELSE '{open_key}' END"


_RESOURCES: Final = """
    Account ActivityDefinition AdverseEvent AllergyIntolerance Appointment AppointmentResponse AuditEvent Basic Binary
    BiologicallyDerivedProduct BodyStructure Bundle CapabilityStatement CarePlan CareTeam CatalogEntry ChargeItem
    ChargeItemDefinition Claim ClaimResponse ClinicalImpression CodeSystem Communication CommunicationRequest
    CompartmentDefinition Composition ConceptMap Condition Consent Contract Coverage CoverageEligibilityRequest
    CoverageEligibilityResponse DetectedIssue Device DeviceDefinition DeviceMetric DeviceRequest DeviceUseStatement
    DiagnosticReport DocumentManifest DocumentReference EffectEvidenceSynthesis Encounter Endpoint EnrollmentRequest
    EnrollmentResponse EpisodeOfCare EventDefinition Evidence EvidenceVariable ExampleScenario ExplanationOfBenefit
    FamilyMemberHistory Flag Goal GraphDefinition Group GuidanceResponse HealthcareService ImagingStudy Immunization
    ImmunizationEvaluation ImmunizationRecommendation ImplementationGuide InsurancePlan Invoice Library Linkage List
    Location Measure MeasureReport Media Medication MedicationAdministration MedicationDispense MedicationKnowledge
    MedicationRequest MedicationStatement MedicinalProduct MedicinalProductAuthorization
    MedicinalProductContraindication MedicinalProductIndication MedicinalProductIngredient MedicinalProductInteraction
    MedicinalProductManufactured MedicinalProductPackaged MedicinalProductPharmaceutical
    MedicinalProductUndesirableEffect MessageDefinition MessageHeader MolecularSequence NamingSystem NutritionOrder
    Observation ObservationDefinition OperationDefinition OperationOutcome Organization OrganizationAffiliation
    Parameters Patient PaymentNotice PaymentReconciliation Person PlanDefinition Practitioner PractitionerRole Procedure
    Provenance Questionnaire QuestionnaireResponse RelatedPerson RequestGroup ResearchDefinition
    ResearchElementDefinition ResearchStudy ResearchSubject RiskAssessment RiskEvidenceSynthesis Schedule
    SearchParameter ServiceRequest Slot Specimen SpecimenDefinition StructureDefinition StructureMap Subscription
    Substance SubstanceNucleicAcid SubstancePolymer SubstanceProtein SubstanceReferenceInformation
    SubstanceSourceMaterial SubstanceSpecification SupplyDelivery SupplyRequest Task TerminologyCapabilities TestReport
    TestScript ValueSet VerificationResult VisionPrescription
"""
FHIR_RESOURCES: Final = frozenset(_RESOURCES.split())
"""Every type of resource of FHIR R4 (hl7.org/fhir/R4/resourcelist.html)."""
