"""What is worth an alert, what it says, and the channels it takes: e-mail and webhook.

An alert holds counts, days, names of clinics, rules and stages; never a value of a person. Each kind has its
entry in docs/runbook.md under the same name. Not here: when an alert is due (`operation`, `watch`).
"""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Any, Final, Literal, NamedTuple

from assets.contract.city import City
from assets.contract.operation import Email, Webhook
from assets.guard import anchor
from assets.intake.connectors.transfer import FetchProblem, secret_value

TIMEOUT_SECONDS: Final = 20
LOOK: Final = "alerts"
"""Name of the sensor that tells them."""


class Kind(NamedTuple):
    urgency: Literal["now", "today", "this month"]
    title: str
    to_do: str


KINDS: Final[dict[str, Kind]] = {
    "run_failed": Kind("today", "A run failed", "Read what it says; the next night tries the same days again by itself."),
    "day_overdue": Kind("today", "An arrival day is not done", "See whether Dagster's daemon runs and a run failed; start the days again."),
    "delivery_refused": Kind("today", "A delivery could not be used", "Tell the clinic the rule that is named; it delivers again."),
    "clinic_silent": Kind("today", "A clinic has delivered nothing for days", "Ask the clinic's IT whether its export runs."),
    "quarantine_is_small": Kind("today", "Much of a clinic's data is in quarantine", "Look at the checks of validated_records; tell the clinic the rules."),
    "budget_paused": Kind("now", "The privacy budget of a window is paused", "Nothing more is measured in it. Follow the runbook before you do anything."),
    "ledger_broken": Kind("now", "The privacy ledger does not verify", "Stop the schedule, keep the file, follow the runbook."),
    "audit_broken": Kind("today", "The audit log does not verify", "Keep the file as it is for whoever examines it; follow the runbook."),
    "release_altered": Kind("today", "A published file is not what was published", "Put it back as the runbook says; find out who can write there."),
    "disk_low": Kind("now", "The disk is nearly full", "Make room before the next night."),
    "daemon_down": Kind("now", "Dagster's daemon or code server does not answer", "Start it again; missed nights are made up for by themselves."),
    "site_unusable": Kind("now", "City file, keys or data root cannot be used", "Put right what is named; nothing runs until then."),
    "alert_undelivered": Kind("today", "An alert could not be delivered", "Check the channel with `digitalstadt alert test`."),
    "new_window": Kind("this month", "A new budget window begins soon", "Go through the yearly duties of the runbook before it does."),
    "alert_test": Kind("this month", "This is a test", "Nothing: alerts reach you."),
}  # fmt: skip


@dataclass(frozen=True)
class Alert:
    """`kind`: a key of `KINDS`. `what`: one value-free line. `run_id`: the run it is about, if any."""

    kind: str
    what: str
    run_id: str | None = None

    @property
    def title(self) -> str:
        return KINDS[self.kind].title

    @property
    def subject(self) -> str:
        """What makes two alerts on a state the same: kind, and clinic or window where there may be several."""
        several = self.kind in ("clinic_silent", "quarantine_is_small", "budget_paused")
        return f"{self.kind} {self.what.split(':')[0]}" if several else self.kind


class NotDelivered(RuntimeError):
    """A channel did not take an alert. Message: the channel and the class of the error."""


class Unanswered(NotDelivered):
    """The channel cannot be reached or said nothing in time, whatever the alert."""


def document(alert: Alert, city: City) -> dict[str, Any]:
    """The JSON that a webhook gets; `text` is what chat systems show."""
    kind, operation = KINDS[alert.kind], city.operation
    entry = anchor(alert.kind)
    runbook = f"{operation.runbook}#{entry.split('#')[1]}" if operation.runbook else entry
    run = f"{operation.desk}/runs/{alert.run_id}" if operation.desk and alert.run_id else alert.run_id
    about = {
        "city": city.key, "synthetic": city.synthetic, "urgency": kind.urgency, "title": kind.title,
        "what_to_do": kind.to_do, "runbook": runbook, "run": run, **asdict(alert),
    }  # fmt: skip
    return about | {"text": text(about)}


def text(about: dict[str, Any]) -> str:
    lines = [
        about["title"],
        "",
        about["what"],
        "",
        f"What to do: {about['what_to_do']}",
        f"Runbook: {about['runbook']}",
    ]
    if about["run"]:
        lines.append(f"Run: {about['run']}")
    lines += ["", f"City {about['city']}, urgency: {about['urgency']}. This message holds no data of any person."]
    return "\n".join(lines)


def send_email(channel: Email, alert: Alert, city: City) -> None:
    """Hand `alert` to the mail server. Raises `NotDelivered`."""
    about, message = document(alert, city), EmailMessage()
    message["Subject"] = f"[digitalstadt {city.key}] {about['title']}"
    message["From"], message["To"] = channel.sender, ", ".join(channel.recipients)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(about["text"])
    try:
        trust = ssl.create_default_context(cafile=str(channel.ca_file) if channel.ca_file else None)
        with (
            smtplib.SMTP_SSL(channel.host, channel.port, timeout=TIMEOUT_SECONDS, context=trust)
            if channel.encryption == "tls"
            else smtplib.SMTP(channel.host, channel.port, timeout=TIMEOUT_SECONDS)
        ) as server:
            if channel.encryption == "starttls":
                server.starttls(context=trust)
            if channel.user and channel.password:
                server.login(channel.user, secret_value(channel.password))
            server.send_message(message)
    except FetchProblem as problem:
        raise NotDelivered(f"email: {problem.reason}") from None
    except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused) as error:
        raise NotDelivered(f"email: {type(error).__name__}") from None
    except OSError as error:  # smtplib's own are its children
        raise Unanswered(f"email: {type(error).__name__}") from None


def send_webhook(channel: Webhook, alert: Alert, city: City) -> None:
    """POST `alert` as JSON; a status of 200 to 299 counts as taken. Raises `NotDelivered`."""
    import httpx

    try:
        url = channel.url or (secret_value(channel.secret_url) if channel.secret_url else "")
        headers = {"Authorization": f"Bearer {secret_value(channel.token)}"} if channel.token else {}
        answer = httpx.post(url, json=document(alert, city), headers=headers, timeout=TIMEOUT_SECONDS)
    except FetchProblem as problem:
        raise NotDelivered(f"webhook: {problem.reason}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # its message may quote a secret address
        kind = Unanswered if isinstance(error, httpx.TransportError) else NotDelivered
        raise kind(f"webhook: {type(error).__name__}") from None
    if not answer.is_success:
        raise NotDelivered(f"webhook: it answered {answer.status_code}")


def channels(city: City) -> list[str]:
    """Names of the channels that the city file has."""
    return [name for name in ("email", "webhook") if getattr(city.operation, name)]


def send(name: str, alert: Alert, city: City) -> None:
    """Send over one channel. Raises `NotDelivered`."""
    if name == "email" and city.operation.email:
        send_email(city.operation.email, alert, city)
    elif name == "webhook" and city.operation.webhook:
        send_webhook(city.operation.webhook, alert, city)
