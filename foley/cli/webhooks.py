"""`foley webhook`: check a webhook that came, see what could not be delivered, and resend it."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from foley.cli.jobs import open_client
from foley.cli.options import ServerOptions
from foley.cli.whole import WHOLE
from foley.errors import OutputError, ParameterError

app = App(
    name="webhook",
    help="Check webhooks of jobs, and send again what could not be delivered.",
    help_format="plaintext",
)
STANDARD_INPUT = Path("-")


@app.command
def verify(
    body: Annotated[Path, Parameter(help="File with the body as it came; - for standard input.")],
    *,
    message_id: Annotated[str, Parameter(name="--id", help="Header webhook-id.")],
    timestamp: Annotated[str, Parameter(help="Header webhook-timestamp.")],
    signature: Annotated[str, Parameter(help="Header webhook-signature.")],
    secret: Annotated[
        str | None,
        Parameter(
            env_var="FOLEY_WEBHOOK_SECRET",
            help="Secret of the service, or several between commas. Other users can see a "
            "command's options, so prefer the variable.",
        ),
    ] = None,
) -> int:
    """Check the signature of a webhook, and write its job and state to standard output."""
    from foley.client.webhooks import verify_webhook

    if secret is None:
        raise ParameterError("--secret: missing; set FOLEY_WEBHOOK_SECRET")
    try:
        content = sys.stdin.buffer.read() if body == STANDARD_INPUT else body.read_bytes()
    except OSError as error:
        raise OutputError(f"{body} cannot be read ({error.strerror}); check the path") from error
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature,
    }
    job = verify_webhook(secret, content, headers)
    print(job.id, job.state)
    return 0


@app.command
def failed(
    *,
    limit: Annotated[int, WHOLE, Parameter(help="How many at most; 1 to 100.")] = 20,
    server: ServerOptions = ServerOptions(),  # noqa: B008 - it is frozen
) -> int:
    """Write the webhooks that were given up: id of the job, tries, address and last error."""
    with open_client(server) as client:
        for webhook in client.jobs.list_failed_webhooks(limit=limit):
            print(webhook.job_id, webhook.tries, webhook.url, webhook.last_error)
    return 0


@app.command
def resend(
    job_id: Annotated[str, Parameter(help="Id of the job.")],
    *,
    server: ServerOptions = ServerOptions(),  # noqa: B008
) -> int:
    """Send the webhook of a job again, and write its state to standard output."""
    with open_client(server) as client:
        print(client.jobs.resend_webhook(job_id).state)
    return 0
