"""Send a webhook to its receiver, once, signed as Standard Webhooks asks.

Source: https://github.com/standard-webhooks/standard-webhooks, version 1.0.
"""

import asyncio
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from pydantic import BaseModel, ConfigDict
from standardwebhooks import Webhook as Signer
from yarl import URL

from foley.errors import FetchError, ParameterError
from runners.guard import allow_networks, open_session, parse_url, translate_error

TRY_SECONDS = 15.0
SCHEMES = ("https", "http")
GONE = 410
HEADERS = {"User-Agent": "foley", "Content-Type": "application/json"}


class WebhookSettings(BaseModel):
    """How webhooks are sent.

    Attributes:
        secrets: each signs; without any no webhooks are sent.
        networks: private ones that may be reached, such as 10.0.0.0/8.
    """

    model_config = ConfigDict(frozen=True)

    secrets: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    def check_url(self, address: str) -> URL:
        """Return the parsed address of a receiver.

        Args:
            address: as the caller gave it; any text.

        Raises:
            ParameterError: no webhooks are sent, or not to such an address.
        """
        if not self.secrets:
            raise ParameterError(
                "webhook_url: this service sends no webhooks; its operator has to set "
                "FOLEY_WEBHOOK_SECRET, or leave it out and ask for the job"
            )
        try:
            url = parse_url(address, SCHEMES, "receiver")
        except FetchError as error:
            raise ParameterError(f"webhook_url: {error}") from error
        try:
            literal = ipaddress.ip_address(url.host or "")
        except ValueError:  # a name, which is resolved when it is connected to
            return url
        if not allow_networks(self.networks)(literal):
            raise ParameterError(
                "webhook_url: the receiver's address leads to a network that is not the open "
                "internet; the operator can allow it with FOLEY_WEBHOOK_NETWORKS"
            )
        return url


@dataclass(frozen=True)
class Refusal:
    """Why a try has failed.

    Attributes:
        reason: for the caller.
        is_final: whether no further try makes sense.
    """

    reason: str
    is_final: bool = False


class Receivers:
    """Sends webhooks; needs a running event loop.

    Args:
        settings: with a secret.
        try_seconds: longest time of one try.
    """

    def __init__(self, settings: WebhookSettings, try_seconds: float = TRY_SECONDS) -> None:
        self._signers = [Signer(secret) for secret in settings.secrets]
        self._try_seconds = try_seconds
        self._session = open_session(headers=HEADERS, is_allowed=allow_networks(settings.networks))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def send(self, address: str, message_id: str, body: str) -> Refusal | None:
        """Try once to send a message; returns None if the receiver has taken it.

        The receiver's body is not read, and no redirect is followed.

        Args:
            address: of the receiver.
            message_id: the same for all tries.
            body: JSON.
        """
        now = datetime.now(UTC)
        headers = {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(
                signer.sign(message_id, now, body) for signer in self._signers
            ),
        }
        try:
            url = parse_url(address, SCHEMES, "receiver")
            async with (
                asyncio.timeout(self._try_seconds),
                self._session.post(
                    url, data=body.encode(), headers=headers, allow_redirects=False
                ) as response,
            ):
                response.close()
                status = response.status
        except TimeoutError:
            return Refusal(f"the receiver did not answer within {self._try_seconds:g} s")
        except FetchError as error:
            return Refusal(str(error))
        except aiohttp.ClientError as error:
            return Refusal(str(translate_error(error, "receiver")))
        if 200 <= status < 300:
            return None
        return Refusal(f"the receiver answered {status}", is_final=status == GONE)
