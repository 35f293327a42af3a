"""The licences of the weights, and the record that a user accepted one."""

import getpass
import json
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from foley.atomic import atomic_path
from foley.errors import DownloadError

ACCEPTANCE_FILE = "licence-accepted.json"


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The licence of a preset's weights.

    Attributes:
        name: the name that its owner uses.
        territory: where it applies, in one phrase.
        notice: what is shown before a download; empty if nothing must be shown.
    """

    name: str
    territory: str
    notice: str

    @property
    def digest(self) -> str:
        """The SHA-256 of the notice; an acceptance is valid for this text only."""
        return sha256(self.notice.encode()).hexdigest()


OWN = Licence(name="Apache-2.0", territory="worldwide", notice="")

TENCENT = Licence(
    name="Tencent Hunyuan Community License (2025-08-28)",
    territory="worldwide except the European Union, the United Kingdom and South Korea",
    notice="""\
The weights of xl and xxl are under the Tencent Hunyuan Community License Agreement (2025-08-28).
It lies beside the weights as LICENSE. This summary does not replace it:

  * It does not apply in the European Union, the United Kingdom and South Korea. Neither the weights
    nor what they make may be used there.
  * More than 100 million monthly users need a separate licence from Tencent.
  * Offering the model as a hosted service counts as distribution: give users a copy of the
    agreement and pass on its sections 5(a) and 5(b).
  * What the model makes may not be used to improve other models.
  * What is published must be marked as machine-generated.

Tencent Hunyuan is licensed under the Tencent Hunyuan Community License Agreement, Copyright (c)
2025 Tencent. All Rights Reserved. The trademark rights of "Tencent Hunyuan" are owned by Tencent or
its affiliate.

The encoders come with them: Synchformer (MIT), SigLIP2 (Apache-2.0), CLAP (Apache-2.0 by its card).
""",
)


def get_licence(preset_name: str) -> Licence:
    """Return the licence of a preset's weights.

    Args:
        preset_name: any name; presets other than xl and xxl have this project's licence.
    """
    return TENCENT if preset_name in ("xl", "xxl") else OWN


def is_accepted(licence: Licence, folder: Path) -> bool:
    """Return whether the licence's present text was accepted for the weights in `folder`."""
    try:
        return json.loads((folder / ACCEPTANCE_FILE).read_text())["sha256"] == licence.digest
    except (OSError, ValueError, KeyError, TypeError):
        return False


def record_acceptance(licence: Licence, folder: Path, *, how: str) -> None:
    """Write beside the weights who accepted which text, when and how.

    Args:
        licence: the licence that was shown.
        folder: the folder of weights; made if it does not exist.
        how: the means of acceptance, such as "typed yes at a terminal".

    Raises:
        DownloadError: the folder cannot be written.
    """
    record = {
        "licence": licence.name,
        "who": f"{_find_user()} on {socket.gethostname()}",
        "how": how,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": licence.digest,
        "text": licence.notice,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / ACCEPTANCE_FILE) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise DownloadError(
            f"cannot write to {folder}: {error.strerror}; name another folder with --to"
        ) from error


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "a user without a name"
