"""Webhooks as their receiver sees them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from foley.client.jobs import RemoteJob
from foley.client.results import RemoteObject
from foley.errors import ParameterError, RequestError
from foley.webhook_secrets import split_secrets


class RemoteWebhook(RemoteObject):
    """The webhook of a job, as the service tells it.

    Attributes:
        id: of the message; all tries have it.
        job_id: of the job.
        url: of the receiver.
        state: it waits for the job's end, is being sent, was delivered, or was given up.
        tries: that were made.
        last_error: why the last try failed; empty if none did.
        next_try_at: None unless it is being sent.
        ended_at: when it was delivered or given up; None before that.
    """

    id: str
    job_id: str
    url: str
    state: Literal["waiting", "sending", "delivered", "failed"]
    tries: int
    last_error: str = ""
    next_try_at: datetime | None = None
    ended_at: datetime | None = None


class RemoteWebhookList(BaseModel):
    """A page of webhooks, the latest first."""

    webhooks: tuple[RemoteWebhook, ...]


class _Message(BaseModel):
    data: RemoteJob


def verify_webhook(secret: str, body: bytes | str, headers: Mapping[str, str]) -> RemoteJob:
    """Return the job that a webhook is about, once its signature was checked.

    Args:
        secret: of the service, as FOLEY_WEBHOOK_SECRET has it; of several, between commas, one
            has to have signed.
        body: of the request, as it came.
        headers: of the request; `webhook-id`, `webhook-timestamp` and `webhook-signature` count.

    Raises:
        ParameterError: the secret is malformed.
        RequestError: the service did not send this within the last five minutes.
    """
    secrets = _read_secrets(secret)
    try:
        text = body if isinstance(body, str) else body.decode()
    except UnicodeDecodeError as error:
        raise RequestError("the webhook is refused: its body is no UTF-8") from error
    try:
        _check_signature(secrets, text, headers)
        return _Message.model_validate_json(body).data
    except WebhookVerificationError as error:
        raise RequestError(f"the webhook is refused: {error}") from error
    except ValidationError as error:
        raise RequestError("the webhook is refused: it is not about a job") from error
    except ValueError as error:
        raise RequestError(
            "the webhook is refused: its header webhook-signature is malformed; pass it on as it "
            "came: v1, a comma and base64"
        ) from error


def _read_secrets(text: str) -> tuple[str, ...]:
    try:
        secrets = split_secrets(text)
    except ParameterError as error:
        raise ParameterError(f"secret: {error}") from error
    if not secrets:
        raise ParameterError("secret: is empty; give it as FOLEY_WEBHOOK_SECRET has it")
    return secrets


def _check_signature(secrets: tuple[str, ...], body: str, headers: Mapping[str, str]) -> None:
    """Raise WebhookVerificationError unless one of the secrets signed this."""
    for number, secret in enumerate(secrets, start=1):
        try:
            Webhook(secret).verify(body, dict(headers), json_parse=False)
        except WebhookVerificationError:
            if number == len(secrets):
                raise
        else:
            return
