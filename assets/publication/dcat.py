"""Linked data about releases: DCAT-AP.de 3.0 with a HealthDCAT-AP block, for a release and for the whole catalogue.

Here: RDF made from the catalogue, the city and the digests of a release. Not here: counts of persons or records
(`numberOfRecords`, `numberOfUniqueIndividuals`): an exact count would be a statistic outside the privacy budget.
Every node has an IRI, so that two runs write the same bytes. The data is its own test: the SHACL shapes of
DCAT-AP.de find no violation in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rdflib import DCTERMS, FOAF, RDF, RDFS, XSD, Graph, Literal, Namespace, URIRef

from assets.contract.city import City, Text
from assets.lake.files import atomic_write
from assets.publication.catalogue import Dataset

DCAT: Final = Namespace("http://www.w3.org/ns/dcat#")
DCATDE: Final = Namespace("http://dcat-ap.de/def/dcatde/")
DCATAP: Final = Namespace("http://data.europa.eu/r5r/")
SPDX: Final = Namespace("http://spdx.org/rdf/terms#")
VCARD: Final = Namespace("http://www.w3.org/2006/vcard/ns#")
HEALTH: Final = Namespace("http://healthdataportal.eu/ns/health#")
DPV: Final = Namespace("https://w3id.org/dpv#")
EU: Final = "http://publications.europa.eu/resource/authority"
GEOCODING: Final = "http://dcat-ap.de/def/politicalGeocoding"
MEDIA_TYPES: Final = "https://www.iana.org/assignments/media-types"
ICD_10: Final = URIRef("https://www.wikidata.org/entity/P494")
LOCAL_AUTHORITY: Final = URIRef("http://purl.org/adms/publishertype/LocalAuthority")
LANGUAGES: Final = (URIRef(f"{EU}/language/DEU"), URIRef(f"{EU}/language/ENG"))
FORMATS: Final = {
    "data.parquet": ("PARQUET", "application/vnd.apache.parquet"),
    "data.csv": ("CSV", "text/csv"),
}
"""File of a release → EU file type and media type."""

_COVERAGE: Final = Text(
    de="Einwilligende Patientinnen und Patienten der teilnehmenden Kliniken und Praxen",
    en="Consenting patients of the participating clinics and practices",
)
_PROVENANCE: Final = Text(
    de="Fälle einwilligender Patienten, je Person begrenzt, mit diskretem Rauschen geschützt (Differential Privacy)",
    en="Cases of consenting patients, bounded per person, protected by discrete noise (differential privacy)",
)


def _graph() -> Graph:
    graph = Graph(bind_namespaces="none")
    for prefix, space in {
        "dcat": DCAT, "dcatap": DCATAP, "dcatde": DCATDE, "dct": DCTERMS, "dpv": DPV, "foaf": FOAF,
        "healthdcatap": HEALTH, "rdfs": RDFS, "spdx": SPDX, "vcard": VCARD, "xsd": XSD,
    }.items():  # fmt: skip
        graph.bind(prefix, space)
    return graph


def _texts(graph: Graph, subject: URIRef, predicate: URIRef, text: Text, note: Text | None = None) -> None:
    for language in ("de", "en"):
        more = f" {getattr(note, language)}" if note else ""
        graph.add((subject, predicate, Literal(getattr(text, language) + more, lang=language)))


def _publisher(graph: Graph, city: City) -> URIRef:
    node = URIRef(f"{city.publication.base_url}/#publisher")
    graph.add((node, RDF.type, FOAF.Agent))
    graph.add((node, FOAF.name, Literal(city.publication.publisher)))
    graph.add((node, DCTERMS.type, LOCAL_AUTHORITY))
    return node


def _contact(graph: Graph, city: City) -> URIRef:
    node = URIRef(f"{city.publication.base_url}/#contact")
    graph.add((node, RDF.type, VCARD.Organization))
    graph.add((node, VCARD.fn, Literal(city.publication.contact_name)))
    graph.add((node, VCARD.hasEmail, URIRef(f"mailto:{city.publication.contact_email}")))
    return node


def _health(graph: Graph, node: URIRef, about: Dataset) -> None:
    """HealthDCAT-AP: who is covered and which codes are used; never how many."""
    _texts(graph, node, HEALTH.populationCoverage, _COVERAGE)
    graph.add((node, HEALTH.minTypicalAge, Literal(0, datatype=XSD.nonNegativeInteger)))
    if "chapter" in {d for level in about.levels for d in level.dimensions.split("+")}:
        graph.add((node, HEALTH.hasCodingSystem, ICD_10))
    graph.add((node, DPV.hasPurpose, DPV.PublicBenefit))
    statement = URIRef(f"{node}#provenance")
    graph.add((node, DCTERMS.provenance, statement))
    graph.add((statement, RDF.type, DCTERMS.ProvenanceStatement))
    _texts(graph, statement, RDFS.label, _PROVENANCE)


def _distribution(graph: Graph, city: City, folder: str, name: str, size: int, digest: str, day: Literal) -> URIRef:
    file_type, media_type = FORMATS[name]
    node = URIRef(f"{folder}{name}#distribution")
    checksum = URIRef(f"{folder}{name}#checksum")
    for predicate, value in (
        (RDF.type, DCAT.Distribution),
        (DCTERMS.title, Literal(name)),
        (DCAT.accessURL, URIRef(folder)),
        (DCAT.downloadURL, URIRef(f"{folder}{name}")),
        (DCTERMS.license, URIRef(city.publication.licence)),
        (DCATDE.licenseAttributionByText, Literal(city.publication.publisher)),
        (DCTERMS["format"], URIRef(f"{EU}/file-type/{file_type}")),
        (DCAT.mediaType, URIRef(f"{MEDIA_TYPES}/{media_type}")),
        (DCAT.byteSize, Literal(size, datatype=XSD.nonNegativeInteger)),
        (DCATAP.availability, URIRef(f"{EU}/planned-availability/AVAILABLE")),
        (DCTERMS.issued, day),
        (DCTERMS.modified, day),
        (SPDX.checksum, checksum),
        *((DCTERMS.language, language) for language in LANGUAGES),
    ):
        graph.add((node, predicate, value))
    graph.add((checksum, RDF.type, SPDX.Checksum))
    graph.add((checksum, SPDX.algorithm, SPDX.checksumAlgorithm_sha256))
    graph.add((checksum, SPDX.checksumValue, Literal(digest, datatype=XSD.hexBinary)))
    return node


def release_graph(
    about: Dataset, city: City, version: str, first: str, frame: pd.DataFrame, files: dict[str, tuple[int, str]]
) -> Graph:
    """DCAT-AP.de of one release. `first`: the dataset's first version; `frame`: its rows, for the time covered; `files`:
    name → (bytes, sha256)."""
    graph, base = _graph(), city.publication.base_url
    node, folder = URIRef(f"{base}/{about.key}"), f"{base}/{about.key}/{version}/"
    synthetic = Text(de="Künstliche Demonstrationsdaten.", en="Synthetic demonstration data.")
    day = Literal(version[:10], datatype=XSD.date)
    title = Text(de=f"{about.title.de}: {city.name.de}", en=f"{about.title.en}: {city.name.en}")
    _texts(graph, node, DCTERMS.title, title)
    _texts(graph, node, DCTERMS.description, about.description, synthetic if city.synthetic else None)
    for predicate, value in (
        (RDF.type, DCAT.Dataset),
        (DCTERMS.identifier, Literal(f"{city.key}.{about.key}")),
        (DCTERMS.publisher, _publisher(graph, city)),
        (DCAT.contactPoint, _contact(graph, city)),
        (DCAT.theme, URIRef(f"{EU}/data-theme/HEAL")),
        (DCTERMS.spatial, URIRef(f"{GEOCODING}/regionalKey/{city.region.ars}")),
        (DCATDE.politicalGeocodingLevelURI, URIRef(f"{GEOCODING}/Level/municipality")),
        (DCTERMS.accrualPeriodicity, URIRef(f"{EU}/frequency/DAILY")),
        (DCTERMS.accessRights, URIRef(f"{EU}/access-right/PUBLIC")),
        (DCATAP.availability, URIRef(f"{EU}/planned-availability/AVAILABLE")),
        (DCAT.landingPage, URIRef(f"{base}/index.html")),
        (DCTERMS.issued, Literal(first[:10], datatype=XSD.date)),
        (DCTERMS.modified, day),
        (DCAT.version, Literal(version)),
        *((DCTERMS.language, language) for language in LANGUAGES),
        *((DCAT.keyword, Literal(word)) for word in about.keywords),
    ):
        graph.add((node, predicate, value))
    graph.add((URIRef(f"{base}/index.html"), RDF.type, FOAF.Document))
    graph.add((URIRef(f"{GEOCODING}/regionalKey/{city.region.ars}"), RDF.type, DCTERMS.Location))
    if city.publication.contributor_id:
        graph.add((node, DCATDE.contributorID, URIRef(city.publication.contributor_id)))
    if len(frame):
        time = URIRef(f"{folder}#temporal")
        graph.add((node, DCTERMS.temporal, time))
        graph.add((time, RDF.type, DCTERMS.PeriodOfTime))
        for predicate, moment in (
            (DCAT.startDate, frame["period_start"].min()),
            (DCAT.endDate, frame["period_end"].max()),
        ):
            graph.add((time, predicate, Literal(f"{moment:%Y-%m-%d}", datatype=XSD.date)))
    _health(graph, node, about)
    for name, (size, digest) in files.items():
        graph.add((node, DCAT.distribution, _distribution(graph, city, folder, name, size, digest, day)))
    return graph


def release_turtle(
    about: Dataset, city: City, version: str, first: str, frame: pd.DataFrame, files: dict[str, tuple[int, str]]
) -> bytes:
    """`dcat-ap-de.ttl` of a release."""
    return release_graph(about, city, version, first, frame, files).serialize(format="turtle", encoding="utf-8")


def catalogue_graph(city: City, releases: list[tuple[str, Path]]) -> Graph:
    """The catalogue of the given releases (dataset, folder of its version): what each says of itself, joined."""
    graph, base = _graph(), city.publication.base_url
    node = URIRef(f"{base}/catalog.ttl")
    titles = Text(
        de=f"Gesundheitsdaten: {city.name.de}",
        en=f"Health data: {city.name.en}",
    )
    what = Text(
        de="Indikatoren aus Fällen einwilligender Patienten, durch Differential Privacy geschützt, täglich fortgeschrieben.",
        en="Indicators from cases of consenting patients, protected by differential privacy, continued daily.",
    )
    _texts(graph, node, DCTERMS.title, titles)
    _texts(graph, node, DCTERMS.description, what)
    for predicate, value in (
        (RDF.type, DCAT.Catalog),
        (DCTERMS.publisher, _publisher(graph, city)),
        (DCTERMS.license, URIRef(city.publication.licence)),
        (FOAF.homepage, URIRef(f"{base}/index.html")),
        (DCTERMS.spatial, URIRef(f"{GEOCODING}/regionalKey/{city.region.ars}")),
        (DCAT.themeTaxonomy, URIRef(f"{EU}/data-theme")),
        *((DCTERMS.language, language) for language in LANGUAGES),
    ):
        graph.add((node, predicate, value))
    graph.add((URIRef(f"{base}/index.html"), RDF.type, FOAF.Document))
    for key, folder in releases:
        graph.parse(folder / "dcat-ap-de.ttl", format="turtle")
        graph.add((node, DCAT.dataset, URIRef(f"{base}/{key}")))
    days = sorted(str(o) for o in graph.objects(None, DCTERMS.modified))
    for predicate, day in ((DCTERMS.issued, city.start.isoformat()), (DCTERMS.modified, (days or [""])[-1])):
        if day:
            graph.add((node, predicate, Literal(day, datatype=XSD.date)))
    return graph


def _sorted(node: Any) -> Any:
    """JSON-LD with its arrays in order: they are sets, which rdflib writes as its hash tables happen to lie."""
    if isinstance(node, dict):
        return {key: _sorted(node[key]) for key in sorted(node)}
    if isinstance(node, list):
        return sorted(map(_sorted, node), key=lambda item: json.dumps(item, sort_keys=True))
    return node


def catalogue_jsonld(graph: Graph) -> bytes:
    """The catalogue as JSON-LD; the same graph always gives the same bytes."""
    context = {prefix: str(space) for prefix, space in sorted(graph.namespaces())}
    text = graph.serialize(format="json-ld", context=context, auto_compact=True)
    return (json.dumps(_sorted(json.loads(text)), ensure_ascii=False, indent=1) + "\n").encode()


def write_catalogue(city: City, releases: list[tuple[str, Path]], open_data: Path) -> None:
    """Write `catalog.ttl` and `catalog.jsonld`, each replaced in one step, and only where it changed."""
    graph = catalogue_graph(city, releases)
    texts = {
        "catalog.ttl": graph.serialize(format="turtle", encoding="utf-8"),
        "catalog.jsonld": catalogue_jsonld(graph),
    }
    for name, text in texts.items():
        path = open_data / name
        if not path.is_file() or path.read_bytes() != text:
            atomic_write(path, text, mode=0o644)
