"""Packed deliveries land as their members; hostile ones are refused with a reason, in bounded memory and time."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import os
import stat
import struct
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from assets.contract.city import City
from assets.intake import archives
from assets.intake.connector import landed, pull
from assets.intake.read import read_exports
from assets.lake.lake import Lake

DAY, TODAY = date(2025, 1, 6), date(2025, 2, 1)
PATIENT = b'{"resourceType":"Patient","id":"p","gender":"female","birthDate":"1980"}\n'
ENCOUNTER = (b'{"resourceType":"Encounter","id":"e","status":"finished","class":{"code":"IMP"},"subject":{"reference":"Patient/p"},'
             b'"period":{"start":"2025-01-05","end":"2025-01-06"}}\n')  # fmt: skip
FILES = {"Encounter.ndjson": ENCOUNTER, "Patient.ndjson": PATIENT}
CANARY = "Erika_Mustermann"
Deliver = Callable[..., Path]


def zipped(files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED, **about: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = how
            for key, value in about.items():
                setattr(member, key, value)
            archive.writestr(member, content)
    return out.getvalue()


def zip64(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w", kind: bytes = tarfile.REGTYPE, form: int = tarfile.PAX_FORMAT, **pax: str) -> bytes:  # fmt: skip
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.pax_headers = kind, "/etc/passwd", pax
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def below(folder: str) -> dict[str, bytes]:
    return {f"{folder}{name}": content for name, content in FILES.items()}


WHOLE = {
    "ZIP": ("export.zip", zipped(FILES)),
    "an upper-case ending": ("EXPORT.ZIP", zipped(FILES)),
    "ZIP, stored": ("export.zip", zipped(FILES, zipfile.ZIP_STORED)),
    "ZIP64": ("export.zip", zip64(FILES)),
    "ZIP with folders in UTF-8": ("export.zip", zipped({"März/": b""} | below("März/für die Stadt/"))),
    "ZIP with folders in cp437": ("export.zip", zipped(below("Maerz/")).replace(b"Maerz", b"M\x84rz_")),
    "ZIP as Windows once wrote it": ("export.zip", zipped({"daten\\": b""} | below("daten\\"))),
    "ZIP behind a program": ("export.zip", b"MZ" * 1000 + zipped(FILES)),
    "tar": ("export.tar", tarred(FILES)),
    "tar of GNU": ("export.tar", tarred(below("./" + "a" * 150 + "/"), form=tarfile.GNU_FORMAT)),
    "tar with long names": ("export.tar", tarred(below("a" * 150 + "/"), mtime="1736150000.123")),
    "tar.gz": ("export.tar.gz", tarred(FILES, "w:gz")),
    "tgz": ("export.tgz", tarred(FILES, "w:gz")),
    "tar.bz2": ("export.tar.bz2", tarred(FILES, "w:bz2")),
    "tar that is packed but not called so": ("export.tar", tarred(FILES, "w:gz")),
    "litter": ("export.zip", zipped({"__MACOSX/a/._Patient.ndjson": b"\0", "__MACOSX/Patient.ndjson": b"\0", "a/.DS_Store": b"\0", "Thumbs.db": b"\0", "a/desktop.ini": b"", "a/_COMPLETE": b""} | FILES)),
    "litter in a tar": ("export.tgz", tarred({"./._Patient.ndjson": b"\0" * 700_000} | FILES, "w:gz")),
}  # fmt: skip


@pytest.mark.parametrize("how", WHOLE)
def test_an_archive_lands_as_its_members_and_is_known_however_it_is_packed(
    lake: Lake, city: City, deliver: Deliver, landing_bytes: Callable[[], dict[str, bytes]], how: str
):
    name, content = WHOLE[how]
    deliver("klinik-nord", DAY, {name: content})
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    assert landing_bytes() == FILES, "and no archive"
    (export,) = landed(lake, city, [DAY])
    manifest = json.loads((export.folder / "manifest.json").read_bytes())
    (about,) = manifest["archives"]
    assert (about["name"], about["bytes"], sorted(about["members"])) == (name, len(content), sorted(FILES))
    assert about["sha256"] == hashlib.sha256(content).hexdigest() and not export.erased
    assert [f["name"] for f in manifest["files"]] == sorted(FILES)
    assert {stat.S_IMODE(p.stat().st_mode) for p in export.folder.iterdir()} == {0o400}
    deliver("klinik-nord", DAY, FILES, suffix="-plain")
    deliver("klinik-nord", DAY, {"again.zip": zipped(FILES)}, suffix="-again")
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["known", "known", "known"]
    assert len(landed(lake, city, [DAY])) == 1 and not list(lake.landing.rglob(".incoming"))


def test_archives_lie_beside_plain_files_and_each_other(lake: Lake, city: City, deliver: Deliver, landing_bytes: Any):
    files = {"Encounter.ndjson.bz2": bz2.compress(ENCOUNTER), "a.tar": tarred({"Patient.ndjson": PATIENT}), "Thumbs.db": b"\0",
             "b.zip": zipped({"Consent.ndjson.gz": gzip.compress(b"")}), "Condition.ndjson": b"", "FALL.CSV.gz": gzip.compress(b"x")}  # fmt: skip
    deliver("klinik-nord", DAY, files)
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    got = landing_bytes()
    assert {n: c for n, c in got.items() if n in FILES} == FILES
    assert sorted(got.keys() - FILES) == ["Condition.ndjson", "Consent.ndjson.gz", "FALL.CSV"]


BIG = b"x" * 200_000_000


def edited(archive: bytes, was: bytes, now: bytes) -> bytes:
    assert was in archive and len(was) == len(now)
    return archive.replace(was, now)


def overlapping() -> bytes:
    """Two members of which the second lies within the first, as in a bomb without recursion."""
    inner = zipped({"b.ndjson": b"{}\n" * 100}, zipfile.ZIP_STORED)
    outer = zipped({"a.ndjson": inner, "b.ndjson": b""}, zipfile.ZIP_STORED)
    archive = zipfile.ZipFile(io.BytesIO(outer))
    second = archive.infolist()[1]
    local = 30 + len("a.ndjson")
    places = archive.start_dir
    out = bytearray(outer)
    at = outer.index(b"b.ndjson", places) - 46
    real = zipfile.ZipFile(io.BytesIO(inner)).infolist()[0]
    struct.pack_into("<III", out, at + 16, real.CRC, real.compress_size, real.file_size)
    struct.pack_into("<I", out, at + 42, local)
    assert second.filename == "b.ndjson"
    return bytes(out)


def many(number: int) -> bytes:
    """A ZIP whose list names so many members; none of them is there."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    size = len(entry) * number
    return entry * number + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number & 0xFFFF, number & 0xFFFF, size, 0, 0)


def header(kind: bytes, size: int, name: bytes = b"a") -> bytes:
    """A header of a tar that announces `size` bytes."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar\00000"
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


WHOLE_TAR = tarred(FILES)
HOSTILE = {
    "out of the folder": ("x.zip", zipped({f"../../{CANARY}.ndjson": b""}), "lead out of it"),
    "an absolute path": ("x.zip", zipped({f"/tmp/{CANARY}.ndjson": b""}), "lead out of it"),
    "a drive": ("x.zip", zipped({f"C:\\{CANARY}.ndjson": b""}), "lead out of it"),
    "out of the folder, Windows": ("x.zip", zipped({f"a\\..\\..\\{CANARY}.ndjson": b""}), "lead out of it"),
    "out of the folder, tar": ("x.tar", tarred({f"../../{CANARY}.ndjson": b"{}"}), "lead out of it"),
    "an absolute path, tar": ("x.tar", tarred({f"/tmp/{CANARY}.ndjson": b"{}"}), "lead out of it"),
    "a name that is none": ("x.zip", zipped({f"{CANARY} geb. 1980.ndjson": b"{}"}), "other characters"),
    "a name with a line end": ("x.tar", tarred({f"{CANARY}.ndjson\n": b"{}"}), "other characters"),
    "a link in a ZIP": ("x.zip", zipped({f"{CANARY}.ndjson": b"/etc/passwd"}, create_system=3, external_attr=(stat.S_IFLNK | 0o777) << 16), "link or a device"),
    **{f"no file in a tar, {kind!r}": ("x.tar", tarred({f"{CANARY}.ndjson": b""}, kind=kind), "link or a device")
       for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z")},
    "the same name twice": ("x.zip", zipped({f"a/{CANARY}.csv": b"", f"b/{CANARY}.csv": b""}), "the same name"),
    "the same name twice, tar": ("x.tar", tarred({f"a/{CANARY}.csv": b"", f"b/{CANARY}.csv": b""}), "the same name"),
    "the name of a file beside it": ("x.zip", zipped({"a/beside.csv": b"1"}), "the same name"),
    "an archive within": ("x.zip", zipped({f"{CANARY}.zip": zipped(FILES)}), "within an archive"),
    "an archive within a tar": ("x.tgz", tarred({f"{CANARY}.csv.bz2": b""}, "w:gz"), "within an archive"),
    "an archive packed twice": (f"{CANARY}.zip.bz2", bz2.compress(zipped(FILES)), "within an archive"),
    "nothing in it": ("x.zip", zipped({}), None),
    "a bomb": ("x.zip", zipped({f"{CANARY}.ndjson": BIG}), "far more data"),
    "a bomb in many members": ("x.zip", zipped({f"{n}.ndjson": BIG[:2_000_000] for n in range(100)}), "far more data"),
    "a bomb in a tar": ("x.tar.gz", tarred({f"{CANARY}.ndjson": BIG}, "w:gz"), "far more data"),
    "a bomb in litter": ("x.tar.gz", tarred({"._litter": BIG}, "w:gz"), "far more data"),
    "a bomb of bzip2": (f"{CANARY}.ndjson.bz2", bz2.compress(BIG), "far more data"),
    "a bomb of a table": (f"{CANARY}.csv.gz", gzip.compress(BIG), "far more data"),
    "a bomb behind the end": ("x.tar.gz", gzip.compress(WHOLE_TAR + bytes(len(BIG))), "far more data"),
    "a bomb of headers": ("x.tar.gz", gzip.compress(header(b"L", 10**9) + bytes(10**8)), "more about its files"),
    "a bomb of pax headers": ("x.tar.gz", gzip.compress(header(b"x", 10**9) + b"1" * 10**7), "more about its files"),
    "a list without end": ("x.zip", many(1_000_000), "lists more than 100000"),
    "a long list": ("x.zip", many(110_000), "lists more than 100000"),
    "overlapping members": ("x.zip", overlapping(), "damaged"),
    "encrypted": ("x.zip", edited(zipped({f"{CANARY}.csv": b"1"}, zipfile.ZIP_STORED), b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"), "encrypted"),
    "encrypted as AES": ("x.zip", edited(zipped({f"{CANARY}.csv": b"1"}, zipfile.ZIP_STORED), b"PK\1\2\x14\x03\x14\0\0\0\0\0", b"PK\1\2\x14\x03\x33\0\1\0\x63\0"), "encrypted"),
    "another method": ("x.zip", zipped({f"{CANARY}.csv": b"1"}, zipfile.ZIP_BZIP2), "in a way that is not read"),
    "a method nobody knows": ("x.zip", edited(zipped({f"{CANARY}.csv": b"1"}, zipfile.ZIP_STORED), b"PK\1\2\x14\x03\x14\0\0\0\0\0", b"PK\1\2\x14\x03\x14\0\0\0\x09\0"), "in a way that is not read"),
    "cut off": ("x.zip", zipped(FILES)[:-30], "damaged"),
    "the end of a ZIP in parts": ("x.zip", zipped(FILES)[len(ENCOUNTER) :], "damaged"),
    "bytes changed": ("x.zip", edited(zipped({f"{CANARY}.csv": b"12345678"}, zipfile.ZIP_STORED), b"12345678", b"12345679"), "damaged"),
    "another name in the list": ("x.zip", zipped({f"{CANARY}.csv": b"1"})[::-1].replace(b"a.csv"[::-1], b"b.csv"[::-1], 1)[::-1].replace(f"{CANARY}.csv".encode(), f"{CANARY[:-1]}m.csv".encode(), 1), "damaged"),
    "no ZIP": ("x.zip", CANARY.encode() * 100, "damaged"),
    "no tar": ("x.tar", CANARY.encode() * 100, "damaged"),
    "no bzip2": (f"{CANARY}.csv.bz2", b"1;2\n", "damaged"),
    "an empty file": ("Consent.ndjson.bz2", b"", "damaged"),
    "an empty tar file": ("x.tar", b"", "damaged"),
    "an empty tar.gz file": ("x.tgz", b"", "damaged"),
    "a tar cut off in a member": ("x.tar", WHOLE_TAR[:700], "damaged"),
    "a tar cut off between members": ("x.tar", WHOLE_TAR[:1024], "damaged"),
    "a tar cut off in a header": ("x.tar", WHOLE_TAR[:1300], "damaged"),
    "a tar with a damaged header": ("x.tar", WHOLE_TAR[:1024] + b"\1" * 512 + WHOLE_TAR[1536:], "damaged"),
    "a tar.gz cut off": ("x.tgz", gzip.compress(WHOLE_TAR)[:-40], "damaged"),
    "a tar.gz cut off at its checksum": ("x.tgz", gzip.compress(WHOLE_TAR)[:-4], "damaged"),
    "a tar.gz with a wrong checksum": ("x.tgz", gzip.compress(WHOLE_TAR)[:-8] + bytes(8), "damaged"),
    "a tar.bz2 cut off": ("x.tar.bz2", bz2.compress(WHOLE_TAR)[:-20], "damaged"),
    "a bzip2 cut off": ("Patient.ndjson.bz2", bz2.compress(PATIENT)[:-4], "damaged"),
    "two tars in one": ("x.tar", WHOLE_TAR + tarred({"Consent.ndjson": b"{}\n"}), "follows the end"),
    "a size below zero": ("x.tar", tarred(FILES, size="-1048576"), "damaged"),
    "a wild size": ("x.tar", header(b"0", 2**60, b"a.csv") + b"1;2\n", "damaged"),
    "a sparse file without end": ("x.tar", tarred({"a.csv": b"1\n0\n1\n" + bytes(506)}, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.csv", "GNU.sparse.realsize": str(2**60)}), "far more data"),
    "litter without end": ("x.tar", tarred({"._a": b"1\n0\n1\n" + bytes(506)}, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "._a", "GNU.sparse.realsize": str(2**60)}), "far more data"),
}  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_archive_is_refused_in_words_without_a_value_and_the_others_go_on(
    lake: Lake, city: City, deliver: Deliver, capfd: pytest.CaptureFixture[str], how: str
):
    name, content, reason = HOSTILE[how]
    plain = {"beside.csv": b"2"} if reason else {}
    deliver("klinik-nord", DAY, {name: content} | plain)
    deliver("hospital-sued", DAY, {"FALL.csv": b"1"})
    outside = {p for p in lake.root.parent.rglob("*") if lake.landing not in p.parents}
    started = time.process_time()
    tracemalloc.start()
    found = {d.clinic: d for d in pull(lake, city, [DAY], TODAY)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 20 and peak < 200 * 2**20, f"bounded work: {peak}"
    assert found["hospital-sued"].outcome == "taken"
    refused = found["klinik-nord"]
    assert refused.outcome == "rejected" and (reason or "it is empty") in refused.reason
    said = refused.reason + "".join(capfd.readouterr())
    assert CANARY not in said and "beside" not in said.replace("beside it", "") and "passwd" not in said
    assert list((lake.landing / "klinik-nord").rglob("*")) == [], "nor a folder that looks like a delivery of the day"
    assert {p for p in lake.root.parent.rglob("*") if lake.landing not in p.parents} - outside <= {lake.landing}
    deliver("klinik-nord", DAY, {"x.zip": zipped(FILES)}, suffix="-corrected")
    assert "taken" in {d.outcome for d in pull(lake, city, [DAY], TODAY)}


def test_more_than_an_export_may_have_is_refused(
    lake: Lake, city: City, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
):
    """The limits hold for all of a delivery, not for each of its archives."""
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    halves = {n: zipped({f"{n}.csv": os.urandom(400)}) for n in ("a.zip", "b.zip")}
    deliver("klinik-nord", DAY, halves | {"c.csv": b"1" * 201})
    deliver("hospital-sued", DAY, {n: zipped({f"{n}-{i}.csv": b"" for i in range(2)}) for n in ("a.zip", "b.zip")})
    deliver("praxisnetz", DAY, halves)
    found = {d.clinic: (d.outcome, d.reason[:24]) for d in pull(lake, city, [DAY], TODAY)}
    assert found == {"klinik-nord": ("rejected", "it unpacks to more than "), "praxisnetz": ("taken", ""),
                     "hospital-sued": ("rejected", "an archive lists more th")}  # fmt: skip


def test_an_archive_leaves_the_others_half_of_the_room_on_the_disk(
    lake: Lake, city: City, deliver: Deliver, small_disk: Callable[[Path, str], Any]
):
    lake.landing.mkdir(parents=True)
    deliver("klinik-nord", DAY, {"x.zip": zipped({"Patient.ndjson": b"\n" * 9_000_000})})
    deliver("hospital-sued", DAY, {"FALL.csv": b"1"})
    with small_disk(lake.landing, "16m"):
        found = {d.clinic: d for d in pull(lake, city, [DAY], TODAY)}
        assert found["klinik-nord"].outcome == "rejected" and "half of the free room" in found["klinik-nord"].reason
        assert found["hospital-sued"].outcome == "taken"
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken", "taken"], "with room it is taken as it is"


_FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
"""


def test_a_disk_that_is_full_midway_is_told_as_that_and_leaves_nothing(
    lake: Lake, city: City, deliver: Deliver, pull_script: Callable[..., list[str]], landing_bytes: Any
):
    files = {"Encounter.ndjson": b"\n" * 3_000_000, "Patient.ndjson": PATIENT}
    deliver("klinik-nord", DAY, {"x.zip": zipped(files)})
    command = pull_script(city, DAY, TODAY, before=_FULL)
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1 and "OSError: [Errno 27]" in done.stderr, "as a disk without room for a plain file"
    assert not list(lake.landing.rglob("*.ndjson"))
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"] and landing_bytes() == files


@pytest.mark.parametrize("how", ["many", "large"])
def test_killed_while_it_unpacks_nothing_half_is_left_whatever_the_clinic_delivers_next(
    lake: Lake, city: City, deliver: Deliver, killed_pull: Callable[..., None], landing_bytes: Any, how: str
):
    if how == "many":
        files = {f"Encounter.{n:05}.ndjson": ENCOUNTER for n in range(5_000)}
        folder = deliver("klinik-nord", DAY, {"x.zip": zipped(files)})
    else:
        part = os.urandom(2**20).hex().encode() + b"\n"
        files = {"Encounter.ndjson": part * 20}
        folder = deliver("klinik-nord", DAY, {"Encounter.ndjson.bz2": bz2.compress(part) * 20})
    incoming = lake.landing / "klinik-nord" / str(DAY) / ".incoming"
    killed_pull(city, DAY, TODAY, lambda: incoming.exists() and any(incoming.iterdir()))
    assert any(incoming.iterdir()) and landed(lake, city, [DAY]) == []
    folder.rename(lake.root.parent / "kept")
    assert pull(lake, city, [date(2025, 1, 7)], TODAY) == [] and not incoming.exists()
    (lake.root.parent / "kept").rename(folder)
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"] and landing_bytes() == files


def test_an_archive_that_is_written_anew_meanwhile_is_taken_by_the_next_run(
    lake: Lake, city: City, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
):
    folder = deliver("klinik-nord", DAY, {"x.zip": zipped(FILES)})
    real = archives._of_zip

    def interrupted(file: Any) -> Any:
        yield from real(file)
        os.utime(folder / "x.zip")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_of_zip", interrupted)
        (found,) = pull(lake, city, [DAY], TODAY)
        assert found.outcome == "waiting" and "changed while it was taken" in found.reason
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]


def test_a_set_of_21_khentgg_in_a_zip_is_read_as_its_tables(lake: Lake, city: City, deliver: Deliver):
    fall = "KH-internes-Kennzeichen;Geschlecht;PLZ;Aufnahmedatum;Aufnahmegrund;Entlassungsdatum;Patientennummer\n1;m;64283;202501050800;0107;202501062300;P\n2;x\n"
    icd = "KH-internes-Kennzeichen;Diagnoseart;ICD-Kode\n1;HD;I210\n"
    consent = (
        "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n;P;2024-01-01;6 7 8;2024-01-01;;\n"
    )
    deliver("hospital-sued", DAY, {"260612345_2024.zip": zipped({"260612345/FALL.csv": fall.encode(), "260612345/ICD.CSV": icd.encode()}),
                                   "consent.csv": consent})  # fmt: skip
    pull(lake, city, [DAY], TODAY)
    tables, rejected = read_exports(landed(lake, city, [DAY]), city)
    assert rejected == {} and tables["cases"].column("case_id").to_pylist() == ["1"]
    assert tables["diagnoses"].column("icd_code").to_pylist() == ["I21.0"]
    assert tables["consent_provisions"].num_rows == 3
    found = [(f["rule"], f["source_file"], f["source_line"]) for f in tables["findings"].to_pylist()]
    assert found == [("wrong_number_of_fields", "FALL.csv", 3)], "a clinic finds it under the member's name"
