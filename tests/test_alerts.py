"""Alerts through a real mail server (STARTTLS, log-in) and a real HTTP server; what is due, once, and never lost."""

from __future__ import annotations

import json
import resource
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import SerializableErrorInfo
from typer.testing import CliRunner

from assets.contract.city import DEFAULT_CITY, City, CityFileError, Pause, load_city
from assets.contract.operation import Operation
from assets.intake import stage
from assets.lake import audit
from assets.lake.lake import Lake
from assets.lake.progress import mark_finished
from assets.lake.zone import open_zone
from assets.privacy.evidence import write_evidence
from assets.privacy.ledger import open_ledger
from pipelines.alerts import KINDS, LOOK, Alert, NotDelivered, send
from pipelines.cli import app
from pipelines.definitions import JOB, build_definitions
from pipelines.environments import Environment
from pipelines.maintenance import prune_history
from pipelines.operation import NO_ROOM, daemons, demo_end, money, overdue, problems, refused, silent, state
from pipelines.outbox import KEPT, Outbox
from pipelines.watch import watch

START = date(2024, 12, 30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


class MailServer:
    """Keeps what it takes; refuses anybody who does not log in over TLS."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=1)).not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = folder / "key.pem"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.ca, private)
        self.messages: list[str] = []
        self.controller = Controller(
            self, hostname="localhost", port=free_port(), tls_context=context, require_starttls=True, auth_required=True,
            authenticator=lambda _s, _session, _e, _m, data: AuthResult(success=data.password == b"correct horse", handled=False),
        )  # fmt: skip

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.messages.append(envelope.content.decode())
        return "250 taken"


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[MailServer]:
    server = MailServer(tmp_path)
    server.controller.start()
    yield server
    server.controller.stop()


class Hook(ThreadingHTTPServer):
    taken: list[dict[str, Any]]
    answer = 200


@pytest.fixture
def hook() -> Iterator[Hook]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.server.answer == 200:
                self.server.taken.append(body | {"authorization": self.headers["Authorization"]})
            self.send_response(self.server.answer)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = Hook(("127.0.0.1", 0), Handler)
    server.taken = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(lake: Lake, tmp_path: Path, mail: MailServer, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An installation whose city file names both channels."""
    monkeypatch.setenv("ALERT_PASSWORD", "correct horse")
    (tmp_path / "token").write_text("bearer-secret\n")
    values = yaml.safe_load(DEFAULT_CITY.read_text())
    values["operation"] = {
        "email": {"host": "localhost", "port": mail.controller.port, "sender": "a@example.org",
                  "recipients": ["night@example.org"], "user": "digitalstadt", "password": {"env": "ALERT_PASSWORD"}, "ca_file": str(mail.ca)},
        "webhook": {"url": f"http://127.0.0.1:{hook.server_port}/alerts", "token": {"file": str(tmp_path / "token")}},
        "desk": "https://desk.example.org", "runbook": "https://example.org/runbook.md",
        "min_free_gigabytes": 0, "notice_days": 1,
    }  # fmt: skip
    (tmp_path / "city.yaml").write_text(yaml.safe_dump(values))
    lake.root.mkdir(exist_ok=True)
    return Environment("test", tmp_path / "city.yaml", lake.root, tmp_path / "keys")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as real:
        yield real


def run(site: Environment, instance: dg.DagsterInstance, day: date) -> dg.ExecuteInProcessResult:
    tags = {"dagster/asset_partition_range_start": str(day), "dagster/asset_partition_range_end": str(day)}
    return (
        build_definitions(site)
        .resolve_job_def(JOB)
        .execute_in_process(instance=instance, tags=tags, raise_on_error=False)
    )


def test_an_alert_reaches_mail_and_webhook_and_says_what_to_do(site: Environment, mail: MailServer, hook: Hook):
    city = load_city(site.city_file)
    alert = Alert("run_failed", "2025-01-01: privacy stopped", "run-1")
    for name in ("email", "webhook"):
        send(name, alert, city)
    (message,), (document,) = mail.messages, hook.taken
    assert "Subject: [digitalstadt darmstadt] A run failed" in message and "To: night@example.org" in message
    for shown in (message.replace("=\r\n", "").replace("\r\n", "\n"), document["text"]):
        assert "2025-01-01: privacy stopped" in shown and f"What to do: {KINDS['run_failed'].to_do}" in shown
        assert "https://example.org/runbook.md#run_failed" in shown and "https://desk.example.org/runs/run-1" in shown
    assert document["kind"] == "run_failed" and document["authorization"] == "Bearer bearer-secret"


def test_a_channel_that_refuses_names_itself_but_no_secret(
    site: Environment, hook: Hook, mail: MailServer, monkeypatch: pytest.MonkeyPatch
):
    city, alert = load_city(site.city_file), Alert("alert_test", "test")
    hook.answer = 503
    monkeypatch.setenv("ALERT_PASSWORD", "wrong battery")
    with pytest.raises(NotDelivered, match=r"^webhook: it answered 503$"):
        send("webhook", alert, city)
    with pytest.raises(NotDelivered, match=r"^email: SMTPAuthenticationError$"):
        send("email", alert, city)
    monkeypatch.delenv("ALERT_PASSWORD")
    with pytest.raises(NotDelivered, match=r"^email: the environment variable ALERT_PASSWORD is not set$"):
        send("email", alert, city)
    untrusting = city.operation.email.model_copy(update={"ca_file": None})  # type: ignore[union-attr]
    city = city.model_copy(update={"operation": city.operation.model_copy(update={"email": untrusting})})
    with pytest.raises(NotDelivered, match=r"^email: SSLCertVerificationError$"):
        send("email", alert, city)
    assert mail.messages == [] and hook.taken == []


def test_a_failed_run_and_a_bad_delivery_are_told_once_without_any_value(
    site: Environment, instance: dg.DagsterInstance, lake: Lake, mail: MailServer, hook: Hook,
    deliver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    city = load_city(site.city_file)
    mark_finished(lake.root, [START + timedelta(n) for n in range((datetime.now().date() - START).days)])
    for clinic in city.clinics:
        (lake.landing / clinic.key / str(datetime.now().date() - timedelta(1)) / "ab").mkdir(parents=True)
    watch(instance, site, city)  # the first look remembers where it began
    assert hook.taken == []
    deliver("praxisnetz", START, {"practice.csv": "CANARYHEADER;x\nCANARYVALUE;y\n"})
    assert run(site, instance, START).success

    def broken(*_: Any) -> None:
        raise ValueError("CANARYVALUE of a person")

    monkeypatch.setattr("assets.consent.stage.run", broken)
    failed = run(site, instance, START + timedelta(1))
    assert not failed.success
    hook.answer = 500
    assert watch(instance, site, city) == (2, ["webhook: it answered 500"])
    kinds = sorted(line for m in mail.messages for line in m.splitlines() if line.startswith("Subject"))
    assert kinds == [
        "Subject: [digitalstadt darmstadt] A delivery could not be used",
        "Subject: [digitalstadt darmstadt] A run failed",
    ]
    assert [a.kind for a in problems(site)] == ["alert_undelivered"]
    hook.answer = 200
    assert watch(instance, site, city) == (2, [])
    by_kind = {d["kind"]: d for d in hook.taken}
    assert (
        "exports_readable: 1 of 1 exports rejected; praxisnetz: header_misses_case_id 1"
        in by_kind["delivery_refused"]["what"]
    )
    assert by_kind["run_failed"]["what"].startswith("2024-12-31: consent stopped: ValueError: its message is withheld")
    assert by_kind["run_failed"]["run"] == f"https://desk.example.org/runs/{failed.run_id}"
    lake.write_record(stage.REFUSED, {str(datetime.now().date()): {"praxisnetz": "csv_unreadable"}})
    assert [a.kind for a in problems(site)] == ["delivery_refused"]  # named by `status`
    assert watch(instance, site, city) == (0, [])  # told once
    assert "CANARY" not in json.dumps(hook.taken) + "".join(mail.messages) + Outbox(lake.root).path.read_text()


def test_a_state_is_told_again_after_its_time_and_forgotten_when_it_is_over(lake: Lake):
    box, now = Outbox(lake.root), datetime(2025, 3, 1, 8, tzinfo=UTC)
    states = [Alert("disk_low", "1.9 GiB free"), Alert("clinic_silent", "a: last"), Alert("clinic_silent", "b: last")]
    assert box.untold(states, now) == states
    box.save()
    box = Outbox(lake.root)
    assert box.untold([Alert("disk_low", "1.8 GiB free"), *states[1:]], now + timedelta(hours=1)) == []
    assert [a.kind for a in box.untold(states, now + timedelta(hours=7))] == ["disk_low"]
    assert box.untold([], now + timedelta(hours=8)) == []
    assert box.untold(states[1:2], now + timedelta(hours=9)) == states[1:2]


def test_a_refused_export_is_named_until_it_came_again_or_nobody_waits_for_it(
    lake: Lake, city: City, deliver: Callable[..., Path]
):
    day, now = date(2025, 3, 4), datetime(2025, 3, 6, 8)
    broken = {"practice.csv": "CANARYHEADER;x\nCANARYVALUE;y\n"}
    practice = "case_id;patient_id;sex;visited_on;visit_type\nv;p;w;2025-03-04;emergency\n"

    def named(of: City = city, at: datetime = now) -> list[str]:
        stage.take(lake, city, [day], now.date())
        stage.read(lake, city, [day])
        return [alert.what for alert in refused(lake, of, at)]

    deliver("praxisnetz", day, broken)
    folder = deliver("klinik-nord", day, {})
    nord, practices = named()
    assert nord == "klinik-nord: 2025-03-04 it is empty; deliver at least one file, or no folder at all"
    assert practices == "praxisnetz: 2025-03-04 header_misses_case_id"
    assert named(city.model_copy(update={"retention_days": 1})) == named(at=now + timedelta(91)) == []
    (folder / "Patient.ndjson").touch()
    assert named() == [practices]
    deliver("praxisnetz", day, {"practice.csv": practice}, suffix="-second")
    assert named() == []
    deliver("praxisnetz", day, broken | {"more.csv": "x\n"}, suffix="-third")
    wrong = deliver("klinik-nord", day, {}, suffix="-second")
    assert named() == [nord, practices], "a correction that is refused, after an export that was not"
    shutil.rmtree(wrong)
    deliver("praxisnetz", day, {"practice.csv": practice.replace("v;", "v2;")}, suffix="-z")
    assert named() == []
    assert "CANARY" not in str(lake.read_record(stage.REFUSED))
    for n in range(5):
        deliver("praxisnetz", day + timedelta(1 + n), broken)
    days = [day + timedelta(1 + n) for n in range(5)]
    stage.take(lake, city, days, day + timedelta(9))
    stage.read(lake, city, days)
    (several,) = refused(lake, city, now)
    assert several.what.count("header_misses_case_id") == 3 and several.what.endswith("; and 2 more days")


def test_a_ledger_that_cannot_be_read_is_told_and_stops_no_look(
    site: Environment, lake: Lake, mail: MailServer, hook: Hook
):
    city = load_city(site.city_file)
    open_ledger(lake, city)
    content = lake.ledger_path.read_bytes()
    for damaged in (b"CANARY" * 4096, content[:4096] + bytes(4096) + content[8192:]):
        lake.ledger_path.write_bytes(damaged)
        (told,) = [a for a in problems(site) if a.kind == "ledger_broken"]
        assert told.what.startswith("ledger.sqlite cannot be read: ") and "CANARY" not in told.what
        assert state(site, city, lake)["windows"] == []
    away = city.model_copy(update={"ledger": "postgresql://127.0.0.1:1/ledger"})
    assert [(a.kind, a.what) for a in money(lake, away)] == [("site_unusable", "the ledger's database does not answer")]
    assert state(site, away, lake)["windows"] == []


def test_keys_of_another_data_root_and_an_unreadable_witness_are_told_and_stop_no_look(
    site: Environment, lake: Lake, mail: MailServer, hook: Hook
):
    audit.record(lake, "looked")
    assert lake.keys.witness and [a for a in problems(site) if a.kind == "site_unusable"] == []
    whole = lake.keys.witness.read_bytes()
    lake.keys.witness.write_bytes(b"")
    assert [(a.kind, "witness cannot be read" in a.what) for a in problems(site)] == [("site_unusable", True)]
    lake.keys.witness.write_bytes(whole)
    (lake.keys.witness.parent / "encryption.key").write_bytes(bytes(range(32)))
    assert [(a.kind, "made with other keys" in a.what) for a in problems(site)] == [("site_unusable", True)]


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_no_look_and_is_told_once(site: Environment, lake: Lake, mail: MailServer, hook: Hook):
    city, instance = load_city(site.city_file), dg.DagsterInstance.ephemeral()  # Dagster's storage lies elsewhere
    mark_finished(lake.root, [START + timedelta(n) for n in range((datetime.now().date() - START).days)])
    open_ledger(lake, city)
    audit.record(lake, "looked")
    watch(instance, site, city)
    hook.taken.clear()
    with no_room():
        assert [a.what for a in problems(site) if a.kind == "disk_low"] == [NO_ROOM]
        assert state(site, city, lake)["windows"] == []
        assert watch(instance, site, city) == (2, [])
        assert watch(instance, site, city) == (0, [])
    assert [d["kind"] for d in hook.taken] == ["disk_low"]
    assert watch(instance, site, city) == (0, [])
    assert [a for a in problems(site) if a.kind == "disk_low"] == []


def looked(instance: dg.DagsterInstance, minutes: int, result: TickStatus) -> InstigatorState:
    """Note in Dagster's own storage that the sensor looked so many `minutes` ago, as its daemon does."""
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("digitalstadt-health"), "__repository__")
    origin, at = RemoteInstigatorOrigin(place, LOOK), time.time() - 60 * minutes
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, SensorInstigatorData(at))
    (instance.update_instigator_state if instance.all_instigator_state() else instance.add_instigator_state)(state)
    of = (state.instigator_origin_id, LOOK, InstigatorType.SENSOR)
    error = SerializableErrorInfo("failed", [], "RuntimeError") if result == TickStatus.FAILURE else None
    instance.create_tick(TickData(*of, result, at, selector_id=state.selector_id, error=error))
    return state


def test_a_code_server_that_is_gone_is_told_though_the_daemon_beats(instance: dg.DagsterInstance):
    def told() -> list[str]:
        return [a.what for a in daemons(instance) if LOOK in a.what]

    assert told() == [], "it never looked: it may be switched off"
    looked(instance, 30, TickStatus.SKIPPED)
    (what,) = told()
    assert what.startswith("the sensor alerts has not looked since 20")
    looked(instance, 1, TickStatus.FAILURE)
    assert told() == [what], "a look that fails is none"
    state = looked(instance, 20, TickStatus.SKIPPED)
    instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))
    assert told() == [], "it was switched off"
    looked(instance, 0, TickStatus.SKIPPED)
    assert told() == []


def test_what_nobody_foresaw_in_the_state_is_an_alert_too_and_holds_no_value(
    site: Environment, lake: Lake, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise ValueError("CANARYVALUE of a person")

    monkeypatch.setattr("pipelines.operation.finished_days", broken)
    (told,) = problems(site)
    assert told.kind == "site_unusable" and told.what.startswith("ValueError: its message is withheld")
    assert "test_alerts.py" in told.what and "CANARY" not in told.what


@pytest.mark.parametrize("content", [b'{"waiting": [', b"[]", b'{"waiting": 3, "told": {}}'])
def test_a_damaged_outbox_begins_anew(
    site: Environment, instance: dg.DagsterInstance, lake: Lake, mail: MailServer, hook: Hook, content: bytes
):
    city = load_city(site.city_file)
    watch(instance, site, city)
    told = [d["kind"] for d in hook.taken]
    assert "day_overdue" in told
    Outbox(lake.root).path.write_bytes(content)
    assert {a.kind for a in problems(site)} >= {"day_overdue"}
    watch(instance, site, city)
    assert [d["kind"] for d in hook.taken] == [*told, *told]


def test_a_channel_that_does_not_answer_is_asked_once_a_look(lake: Lake, city: City, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.alerts.TIMEOUT_SECONDS", 0.2)
    sent: list[tuple[str, str]] = []
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes the connection, says nothing
        port = mute.getsockname()[1]
        operation = Operation.model_validate(
            {"email": {"host": "127.0.0.1", "port": port, "sender": "a@b", "recipients": ["c@d"]},
             "webhook": {"url": f"http://127.0.0.1:{port}/"}}
        )  # fmt: skip
        unheard = city.model_copy(update={"operation": operation})

        def counted(name: str, alert: Alert) -> None:
            sent.append((name, alert.what))
            if name != "other":
                send(name, alert, unheard)

        box = Outbox(lake.root)
        box.add([Alert("disk_low", str(n)) for n in range(3)], ["email", "webhook", "other"])
        assert box.deliver(counted) == (3, ["email: SMTPServerDisconnected", "webhook: ReadTimeout"])
        assert sent == [("email", "0"), ("webhook", "0"), *(("other", str(n)) for n in range(3))]
        assert len(box.waiting()) == 6


def test_what_waits_does_not_grow_for_ever(lake: Lake):
    box = Outbox(lake.root)
    box.add([Alert("disk_low", str(n)) for n in range(KEPT)], ["email", "webhook"])
    assert [entry["alert"]["what"] for entry in box.record["waiting"][:: KEPT - 1]] == [str(KEPT // 2), str(KEPT - 1)]


def test_a_channel_that_refuses_one_alert_is_asked_for_the_others(site: Environment, lake: Lake, hook: Hook):
    city, box = load_city(site.city_file), Outbox(lake.root)
    hook.answer = 400
    box.add([Alert("disk_low", str(n)) for n in range(3)], ["webhook"])
    asked: list[str] = []

    def once_refused(name: str, alert: Alert) -> None:
        asked.append(alert.what)
        hook.answer = 400 if alert.what == "0" else 200
        send(name, alert, city)

    assert box.deliver(once_refused) == (2, ["webhook: it answered 400"]) and asked == ["0", "1", "2"]


def test_a_clock_that_was_set_back_silences_nothing(
    site: Environment,
    instance: dg.DagsterInstance,
    lake: Lake,
    mail: MailServer,
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
):
    city, now = load_city(site.city_file), datetime.now(UTC)
    box = Outbox(lake.root)
    state_of = [Alert("disk_low", "1.9 GiB free")]
    assert box.untold(state_of, now + timedelta(days=300)) == box.untold(state_of, now) == state_of
    assert box.untold(state_of, now) == []
    box.record["since"] = (now + timedelta(days=300)).isoformat()
    box.save()
    watch(instance, site, city)
    monkeypatch.setattr("assets.intake.stage.take", lambda *_: 1 / 0)
    failed = run(site, instance, START)
    for _ in range(2):
        watch(instance, site, city)
    assert [d["run_id"] for d in hook.taken if d["kind"] == "run_failed"] == [failed.run_id]


def test_an_audit_log_that_was_changed_is_told_by_every_look(
    site: Environment, lake: Lake, mail: MailServer, hook: Hook
):
    for count in range(3):
        audit.record(lake, "looked", count=count)
    path = lake.confidential / audit.FILE
    whole = path.read_bytes()
    assert [a.kind for a in problems(site) if a.kind == "audit_broken"] == []
    for damaged in (whole.replace(b'"count": 1', b'"count": 7'), whole[: whole.rindex(b"{")], b""):
        path.write_bytes(damaged)
        (told,) = [a for a in problems(site) if a.kind == "audit_broken"]
        assert "the log was" in told.what or "its end is missing" in told.what
    path.write_bytes(whole)
    assert [a.kind for a in problems(site) if a.kind == "audit_broken"] == []


def test_a_clinic_is_not_silent_while_its_pause_and_the_first_days_after_it_last(lake: Lake, city: City):
    pause = Pause(first=START + timedelta(2), last=START + timedelta(40))
    paused = city.clinics[0].model_copy(update={"pauses": (pause,)})
    named = city.model_copy(update={"clinics": (paused,)})

    def alarms(day: int, of: City = named) -> list[str]:
        return [a.kind for a in silent(lake, of, {START + timedelta(day)})]

    (lake.landing / paused.key / str(START + timedelta(1)) / "ab12").mkdir(parents=True)
    assert alarms(30) == alarms(40) == alarms(40 + city.operation.silent_days - 1) == []
    assert alarms(40 + city.operation.silent_days) == ["clinic_silent"]
    assert alarms(30, city.model_copy(update={"clinics": city.clinics[:1]})) == ["clinic_silent"]


def test_days_are_overdue_from_the_hour_of_the_city_on(city: City):
    done = {START + timedelta(n) for n in range(5)}
    at = datetime(2025, 1, 4, 6, 59)
    assert list(overdue(done, city, at)) == []
    assert [a.what for a in overdue(done, city, at + timedelta(days=1))] == []
    assert [a.what for a in overdue(done, city, at.replace(day=5) + timedelta(hours=1))] == ["not done: 2025-01-04"]
    assert [a.what for a in overdue(done - {START}, city, at)] == ["not done: 2024-12-30"]


def test_a_finished_demo_is_not_late_and_a_real_city_is(city: City, lake: Lake):
    truth = lake.root / "truth"
    truth.mkdir(parents=True)
    (truth / "summary.json").write_text('{"days": 5}')
    done, now = {START + timedelta(n) for n in range(5)}, datetime(2026, 11, 25, 12)
    assert list(overdue(done, city, now, demo_end(lake.root, city))) == []
    missed = overdue(done - {START + timedelta(2)}, city, now, demo_end(lake.root, city))
    assert [a.what for a in missed] == ["not done: 2025-01-01"]
    real = city.model_copy(update={"synthetic": False})
    assert demo_end(lake.root, real) is None
    assert [a.kind for a in overdue(done, real, now, demo_end(lake.root, real))] == ["day_overdue"]
    (truth / "summary.json").unlink()
    assert demo_end(lake.root, city) is None


def test_status_and_health_say_what_is_wrong_by_exit_code(
    site: Environment, lake: Lake, monkeypatch: pytest.MonkeyPatch, hook: Hook, mail: MailServer
):
    for name, value in (("CITY", site.city_file), ("DATA", lake.root), ("KEYS", site.key_folder)):
        monkeypatch.setenv(f"DIGITALSTADT_{name}", str(value))
    cli, yesterday = CliRunner(), datetime.now().date() - timedelta(1)
    ill = cli.invoke(app, ["health", "--json"])
    assert ill.exit_code == 1 and [p["kind"] for p in json.loads(ill.stdout)["problems"]] == ["day_overdue"]
    mark_finished(lake.root, [START + timedelta(n) for n in range((yesterday - START).days + 1)])
    assert cli.invoke(app, ["health"]).stdout == "healthy\n"
    about = cli.invoke(app, ["status", "--json"])
    assert about.exit_code == 1  # three clinics are silent: a person is needed, though the service is well
    assert {p["kind"] for p in json.loads(about.stdout)["needs_a_person"]} == {"clinic_silent"}
    for clinic in ("klinik-nord", "hospital-sued", "praxisnetz"):
        (lake.landing / clinic / str(yesterday) / "ab12").mkdir(parents=True)
    assert cli.invoke(app, ["status"]).exit_code == 0
    assert cli.invoke(app, ["alert", "test"]).exit_code == 0 and len(hook.taken) == len(mail.messages) == 1
    (site.key_folder / "encryption.key").chmod(0o644)  # type: ignore[operator]
    unusable = cli.invoke(app, ["health"])
    assert unusable.exit_code == 1 and "chmod 600" in unusable.stdout


@pytest.mark.parametrize(
    ("operation", "where"),
    [
        ({"email": {"host": "mail.example.org", "sender": "a@b", "recipients": []}}, "operation.email.recipients"),
        (
            {"email": {"host": "mail.example.org", "sender": "a@b", "recipients": ["c@d"], "encryption": "none"}},
            "operation.email",
        ),
        ({"webhook": {"url": "http://example.org/hook"}}, "operation.webhook.url"),
        # pragma: allowlist nextline secret
        ({"webhook": {"url": "https://user:pass@example.org/hook"}}, "operation.webhook.url"),
        ({"webhook": {"token": "secret-itself", "url": "https://example.org"}}, "operation.webhook.token"),
    ],
)
def test_a_wrong_channel_is_refused_with_its_line(operation: dict[str, Any], where: str, tmp_path: Path):
    text = DEFAULT_CITY.read_text() + "\n" + yaml.safe_dump({"operation": operation})
    (tmp_path / "city.yaml").write_text(text)
    with pytest.raises(CityFileError) as caught:
        load_city(tmp_path / "city.yaml")
    assert where in str(caught.value) and "secret-itself" not in str(caught.value)
    first = DEFAULT_CITY.read_text().count("\n") + 1
    assert int(str(caught.value).split(":")[1]) > first


def test_pruning_forgets_runs_but_not_which_days_are_done(site: Environment, instance: dg.DagsterInstance):
    done = run(site, instance, START)
    key, log = dg.AssetCheckKey(dg.AssetKey("validated_records"), "keys"), instance.event_log_storage
    assert prune_history(instance, 400) == 0
    assert log.get_asset_check_execution_history(key, limit=5) != []
    assert prune_history(instance, -1) == 1
    assert log.get_asset_check_execution_history(key, limit=5) == []
    assert instance.get_run_by_id(done.run_id) is None
    assert instance.get_materialized_partitions(dg.AssetKey("open_data")) == {str(START)}


def test_pruning_gives_the_disk_back(tmp_path: Path):
    @dg.op
    def says() -> None:
        print("said")

    @dg.job(executor_def=dg.in_process_executor)
    def cheap() -> None:
        says()

    config = yaml.safe_load((Path(__file__).resolve().parents[1] / "dagster.yaml").read_text())
    log = config["event_log_storage"] | {"config": {"base_dir": str(tmp_path)}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides={"event_log_storage": log}) as instance:
        runs = [cheap.execute_in_process(instance=instance).run_id for _ in range(2)]
        left = [path for path in tmp_path.rglob("*") if any(run in path.name for run in runs)]
        assert {path.suffix for path in left} >= {".db", ""}  # events, captured output
        assert prune_history(instance, -1) == 2
        assert [path for path in tmp_path.rglob("*") if any(run in str(path) for run in runs)] == []


def test_a_damaged_or_missing_word_of_the_ledger_outside_is_told_before_the_night(
    site: Environment, lake: Lake, mail: MailServer, hook: Hook
):
    city = load_city(site.city_file)
    open_zone(lake)
    lake.open_data.mkdir()
    write_evidence(lake, open_ledger(lake, city))
    evidence = lake.open_data / "ledger.json"
    assert [a for a in problems(site) if a.kind == "ledger_broken"] == []
    for content in (evidence.read_bytes()[:40], evidence.read_bytes().replace(b'"entries": 0', b'"entries": 9')):
        evidence.write_bytes(content)
        (told,) = [a for a in problems(site) if a.kind == "ledger_broken"]
        assert "ledger.json" in told.what
        write_evidence(lake, open_ledger(lake, city))


@pytest.mark.parametrize("content", [b"[[", b"[1]", b'[["2025-01-01", "never"]]'])
def test_a_damaged_record_of_done_days_is_told_by_name(
    site: Environment, lake: Lake, mail: MailServer, hook: Hook, content: bytes
):
    open_zone(lake)
    mark_finished(lake.root, [START])
    (lake.confidential / "records" / "finished_days.json").write_bytes(content)
    (told,) = problems(site)
    assert (told.kind, told.what) == ("site_unusable", "the record finished_days cannot be read: it is damaged")
