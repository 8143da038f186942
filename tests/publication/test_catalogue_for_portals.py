from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from rdflib import DCTERMS, RDF, SKOS, Graph, Literal, URIRef

from assets.contract.city import City
from assets.publication.bundle import publish
from assets.publication.catalogue import DATASETS
from assets.publication.dcat import DCAT, DCATDE, EU, GEOCODING, HEALTH, LOCAL_AUTHORITY, SPDX, write_catalogue
from assets.publication.guarantee import Guarantee

Frames = dict[str, pd.DataFrame]
VOCABULARIES = ("language", "frequency", "data-theme", "access-right", "file-type", "planned-availability")


@pytest.fixture(scope="module")
def open_data(frames: Frames, city: City, plan: Guarantee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("open_data")
    done = publish(frames, city, root, date(2025, 12, 31), plan)
    write_catalogue(city, [(p.dataset, root / p.dataset / p.version) for p in done], root)
    return root


@pytest.fixture(scope="module")
def catalogue(open_data: Path) -> Graph:
    return Graph().parse(open_data / "catalog.ttl")


def _known_terms(graph: Graph) -> Graph:
    """What the shapes must know of the authority values in use: which list each stands in."""
    known = Graph()
    for term in set(graph.objects()):
        for name in VOCABULARIES:
            if str(term).startswith(f"{EU}/{name}/"):
                known.add((term, SKOS.inScheme, URIRef(f"{EU}/{name}")))
    level = f"{GEOCODING}/Level"
    known.add((URIRef(f"{level}/municipality"), SKOS.inScheme, URIRef(level)))
    known.add((LOCAL_AUTHORITY, SKOS.inScheme, URIRef("http://purl.org/adms/publishertype/1.0")))
    known.add((SPDX.checksumAlgorithm_sha256, RDF.type, SPDX.ChecksumAlgorithm))
    return known


@pytest.fixture(scope="session")
def shapes(shared_data: Path) -> tuple[Graph, Graph]:
    folder = shared_data / "dcat-ap-de-3.0"
    shapes = Graph()
    for name in ("base", "dcat-ap-SHACL-DE", "dcat-ap-de-controlledvocabularies", "dcat-ap-de-deprecated"):
        shapes.parse(folder / f"{name}.ttl")
    shapes.parse(folder / "dcat-ap-spec-german-additions.ttl")
    vocabularies = Graph()
    for path in sorted(folder.glob("*.rdf")):
        vocabularies.parse(path)
    for name in ("org", "vcard"):
        vocabularies.parse(folder / f"{name}.ttl")
    return shapes, vocabularies


def _findings(graph: Graph, shapes: tuple[Graph, Graph]) -> list[str]:
    import pyshacl

    known = _known_terms(graph) + shapes[1]
    # The vocabularies are part of the data, as inference is off: `sh:class` follows what the data says.
    _, report, _ = pyshacl.validate(graph + known, shacl_graph=shapes[0], do_owl_imports=False, advanced=True)
    sh = "http://www.w3.org/ns/shacl#"
    own = set(graph.subjects()) | set(graph.objects())  # a term from a wrong list is found at the term
    return [
        f"{report.value(r, URIRef(sh + 'resultSeverity'))} {report.value(r, URIRef(sh + 'focusNode'))}: "
        f"{report.value(r, URIRef(sh + 'resultMessage'))}"
        for r in report.subjects(RDF.type, URIRef(sh + "ValidationResult"))
        if report.value(r, URIRef(sh + "focusNode")) in own
    ]


def test_the_catalogue_conforms_to_dcat_ap_de(catalogue: Graph, shapes: tuple[Graph, Graph]) -> None:
    assert len(set(catalogue.subjects(RDF.type, DCAT.Dataset))) == len(DATASETS)
    assert _findings(catalogue, shapes) == []


def test_each_release_conforms_on_its_own(open_data: Path, shapes: tuple[Graph, Graph]) -> None:
    assert _findings(Graph().parse(open_data / "cases_by_chapter" / "latest" / "dcat-ap-de.ttl"), shapes) == []


@pytest.mark.parametrize(
    "broken",
    [
        (DCTERMS.publisher, None),
        (DCTERMS.title, None),
        (DCAT.theme, URIRef(f"{EU}/data-theme-of-another-list/HEAL")),
        (DCAT.byteSize, Literal("many")),
        (DCTERMS.accessRights, URIRef("https://example.org/open")),
    ],
)
def test_the_shapes_catch_a_broken_catalogue(
    catalogue: Graph, shapes: tuple[Graph, Graph], broken: tuple[URIRef, URIRef | Literal | None]
) -> None:
    graph = Graph() + catalogue
    predicate, value = broken
    for subject in set(graph.subjects(predicate)):
        graph.remove((subject, predicate, None))
        if value is not None:
            graph.add((subject, predicate, value))
    assert any("Violation" in finding for finding in _findings(graph, shapes))


def test_turtle_and_json_ld_say_the_same(open_data: Path, catalogue: Graph) -> None:
    from rdflib.compare import isomorphic

    assert isomorphic(catalogue, Graph().parse(open_data / "catalog.jsonld"))


def test_no_exact_count_is_told(open_data: Path, catalogue: Graph) -> None:
    assert (None, HEALTH.numberOfRecords, None) not in catalogue
    for text in (open_data / "catalog.ttl", open_data / "catalog.jsonld"):
        assert "numberOf" not in text.read_text()
    assert set(catalogue.subject_objects(HEALTH.populationCoverage))


def test_downloads_lead_to_the_files_of_the_version(open_data: Path, catalogue: Graph, city: City) -> None:
    import hashlib

    links = list(catalogue.subject_objects(DCAT.downloadURL))
    assert len(links) == 2 * len(DATASETS)
    for distribution, url in links:
        data = (open_data / str(url).removeprefix(city.publication.base_url + "/")).read_bytes()
        checksum = catalogue.value(distribution, SPDX.checksum)
        assert str(catalogue.value(checksum, SPDX.checksumValue)) == hashlib.sha256(data).hexdigest()
        assert int(str(catalogue.value(distribution, DCAT.byteSize))) == len(data)
        assert str(catalogue.value(distribution, DCATDE.licenseAttributionByText)) == city.publication.publisher


def test_a_dataset_keeps_the_day_of_its_first_issue(
    frames: Frames, city: City, plan: Guarantee, tmp_path: Path
) -> None:
    weeks = frames["emergency_share"]
    for day, rows in (("2025-03-02", 9), ("2025-03-09", 10)):
        publish({"emergency_share": weeks.head(rows)}, city, tmp_path, date.fromisoformat(day), plan)
    graph = Graph().parse(tmp_path / "emergency_share" / "latest" / "dcat-ap-de.ttl")
    (node,) = graph.subjects(RDF.type, DCAT.Dataset)
    assert str(graph.value(node, DCTERMS.issued)) == "2025-03-02"
    assert str(graph.value(node, DCTERMS.modified)) == "2025-03-09"


def test_an_unchanged_catalogue_is_not_touched(open_data: Path, city: City) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in open_data.glob("catalog.*")}
    write_catalogue(city, [(d.key, open_data / d.key / "2025-12-31") for d in DATASETS], open_data)
    assert {p.name: p.stat().st_mtime_ns for p in open_data.glob("catalog.*")} == before and len(before) == 2


def test_the_catalogue_has_the_same_bytes_in_every_process(open_data: Path, city: City, tmp_path: Path) -> None:
    """Hash tables differ from process to process; what is written must not."""
    code = (
        "import sys; from pathlib import Path; from assets.contract.city import load_city;"
        "from assets.publication.dcat import write_catalogue; root, out = map(Path, sys.argv[1:3]);"
        "write_catalogue(load_city(), [(k, root / k / '2025-12-31') for k in sys.argv[3:]], out)"
    )
    keys = [d.key for d in DATASETS]
    write_catalogue(city, [(k, open_data / k / "2025-12-31") for k in keys], tmp_path)
    wanted = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(wanted) == {"catalog.ttl", "catalog.jsonld"}
    for seed in ("1", "2"):
        out = tmp_path / seed
        out.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, str(open_data), str(out), *keys],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            check=True,
        )
        assert {p.name: p.read_bytes() for p in out.iterdir()} == wanted
