"""The client for ordinary code."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import httpx

from foley.atomic import complete_or_absent
from foley.client import transport
from foley.client.results import RemoteFile, RemoteGeneration, RemoteModel
from foley.client.transport import Call, Clip, OnUpdate, Options
from foley.errors import ConnectionFailedError, NotFoundError, NotReadyError


class FoleyClient:
    """A service, reached over HTTP. Threads may share one.

    Args:
        base_url: the service's address, such as http://127.0.0.1:3000.
        api_key: where the service asks for one.
        timeout_seconds: how long one call may take, sending and waiting included; None: as long as
            the service gives signs of life.

    Raises:
        ParameterError: the address or the key is none.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, timeout_seconds: float | None = None
    ) -> None:
        self._http = httpx.Client(**transport.connection(base_url, api_key, timeout_seconds))
        self._timeout_seconds = timeout_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections up."""
        self._http.close()

    def generate(
        self,
        clip: Clip,
        *,
        destination: Path | str | None = None,
        request_id: str | None = None,
        on_update: OnUpdate | None = None,
        max_wait_seconds: float = 0.0,
        **options: Unpack[Options],
    ) -> RemoteGeneration:
        """Have the sounds of a clip made. Leaving the call, by an interrupt say, cancels it.

        Args:
            clip: path of the video, or its bytes.
            destination: folder that receives the files, made if it is missing. Without it they
                stay with the service for a while, to be had by `download` or `read`.
            request_id: up to 64 letters, digits, `.`, `_` and `-`; names the request in the
                service's log and to `cancel`.
            on_update: told how far the request has come.
            max_wait_seconds: how long to try again while the service is busy or not ready.
            options: as in `foley.GenerationRequest`; and trim, format, priority.

        Raises:
            RequestError: the clip, an option or the key is refused; see `foley.errors`.
            ServerError: the service failed, or is not ready.
            ConnectionFailedError: it cannot be reached, broke off, or took longer than allowed.
        """
        call = Call(clip, options, request_id=request_id, on_update=on_update)
        patience = transport.Patience(max_wait_seconds)
        while True:
            try:
                made = self._generate(call)
                break
            except transport.PASSING as error:
                time.sleep(patience.wait_after(error))
        if destination is None:
            return made
        saved = [
            self.download(file, path) for file, path in call.destinations(made, Path(destination))
        ]
        return made.model_copy(update={"saved": tuple(saved)})

    def download(self, file: RemoteFile, path: Path | str) -> Path:
        """Write one file of a result; nothing partial is left. Returns the path.

        Raises:
            NotFoundError: the service does not keep it any more.
            OutputError: it cannot be written.
        """
        path = Path(path)
        num_bytes = 0
        with transport.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                complete_or_absent(path) as partial,
                partial.open("wb") as output,
                self._answer("GET", transport.result_path(file)) as response,
            ):
                for chunk in response.iter_bytes():
                    num_bytes += output.write(chunk)
                transport.check_size(file, num_bytes)
        return path

    def read(self, file: RemoteFile) -> bytes:
        """The bytes of one file of a result."""
        with self._answer("GET", transport.result_path(file)) as response:
            content = response.read()
        transport.check_size(file, len(content))
        return content

    def cancel(self, request_id: str) -> bool:
        """Drop a request; False when there is none of that id, or it is done."""
        try:
            with self._answer("POST", transport.cancel_path(request_id)) as response:
                response.read()
        except NotFoundError:
            return False
        return True

    def models(self) -> list[RemoteModel]:
        """What the service serves."""
        with self._answer("GET", "/v1/models") as response:
            return transport.models_in(response.read())

    def ready(self) -> bool:
        """Whether the model is loaded and warm.

        Raises:
            ModelFailedError: it never will be.
        """
        try:
            with self._answer("GET", "/readyz") as response:
                response.read()
        except NotReadyError:
            return False
        return True

    def _generate(self, call: Call) -> RemoteGeneration:
        stream = transport.Stream(call, self._timeout_seconds)
        with call.form() as form, self._answer("POST", "/v1/generate", **form) as response:
            for chunk in response.iter_bytes():
                if (made := stream.feed(chunk)) is not None:
                    return made
        raise ConnectionFailedError(f"{self._http.base_url} broke off before the result; try again")

    @contextmanager
    def _answer(self, method: str, path: str, **content: object) -> Iterator[httpx.Response]:
        with (
            transport.connection_errors(self._http.base_url),
            self._http.stream(method, path, **content) as response,  # type: ignore[arg-type]
        ):
            if response.status_code != 200:
                raise transport.refusal(response.status_code, response.headers, response.read())
            yield response
