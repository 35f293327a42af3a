"""The blocking client."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import httpx

from foley.atomic import atomic_path
from foley.client.request import Clip, OnSound, OnUpdate, PreparedRequest, RequestOptions
from foley.client.response import (
    ResponseReader,
    check_size,
    parse_error_response,
    parse_models,
)
from foley.client.results import RemoteFile, RemoteGeneration, RemoteModel, RemotePiece
from foley.client.sync_jobs import Jobs
from foley.client.transport import (
    RETRYABLE_ERRORS,
    RetryPolicy,
    get_cancel_path,
    get_result_path,
    make_client_settings,
    map_connection_errors,
    map_write_errors,
)
from foley.errors import ConnectionFailedError, NotFoundError, NotReadyError


class FoleyClient:
    """A client of one service. Several threads may share it.

    Args:
        base_url: the service's address, such as http://127.0.0.1:3000.
        api_key: the key, if the service asks for one.
        timeout_seconds: how long one call may take, including sending and waiting. None lets a
            call last as long as the service sends something at least once a minute.

    Attributes:
        jobs: the durable jobs of the service.

    Raises:
        ParameterError: the address or the key is malformed.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, timeout_seconds: float | None = None
    ) -> None:
        self._http = httpx.Client(**make_client_settings(base_url, api_key, timeout_seconds))
        self._timeout_seconds = timeout_seconds
        self.jobs = Jobs(self._request, self.download)

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
        """Close the connections."""
        self._http.close()

    def generate(
        self,
        clip: Clip | None,
        *,
        destination: Path | str | None = None,
        output: Path | str | None = None,
        request_id: str | None = None,
        on_update: OnUpdate | None = None,
        on_sound: OnSound | None = None,
        max_wait_seconds: float = 0.0,
        **options: Unpack[RequestOptions],
    ) -> RemoteGeneration:
        """Generate the sound of a clip. An exception inside the call cancels the request.

        Args:
            clip: path of the video, or its bytes; None with a `clip_url`, or with
                `duration_seconds` and a prompt.
            destination: folder for the files, created if it is missing. Without it the files stay
                with the service for some minutes, for `download` or `read`.
            output: file for the sound of one variation, instead of a folder. Its suffix is the
                `format`.
            request_id: 1 to 64 letters, digits, `.`, `_` and `-`, which identify the request in
                the service's log and for `cancel`.
            on_update: called with each report of progress.
            on_sound: called with each piece of about 8 s of a sound of over 15 s, while the service
                makes the rest; `read` or `download` fetch it. None asks for no pieces.
            max_wait_seconds: how long to retry while the service is busy or not ready.
            options: the options of `foley.GenerationRequest`, and trim, format and priority.

        Raises:
            RequestError: the clip, an option or the key is refused; see `foley.errors`.
            OutputError: the service chose another container than that of `output`.
            ServerError: the service failed, or is not ready.
            ConnectionFailedError: the service cannot be reached, closed the connection, or took
                longer than `timeout_seconds`.
        """
        if on_sound is not None:
            options["pieces"] = True
        request = PreparedRequest(
            clip, options, request_id=request_id, destination=destination, output=output
        )
        retries = RetryPolicy(max_wait_seconds)
        while True:
            try:
                result = self._generate(request, on_update, on_sound)
                break
            except RETRYABLE_ERRORS as error:
                time.sleep(retries.compute_delay(error))
        pairs = request.pair_result_paths(result)
        saved = tuple(self.download(file, path) for file, path in pairs)
        return result.model_copy(update={"saved": saved})

    def download(self, file: RemoteFile | RemotePiece, path: Path | str) -> Path:
        """Write one file of a result, completely or not at all; return its path.

        Args:
            file: one of `RemoteGeneration.files`.
            path: where to write it; missing folders are created.

        Raises:
            NotFoundError: the service no longer keeps the file.
            ConnectionFailedError: the connection was lost before the last byte.
            OutputError: the path cannot be written.
        """
        path = Path(path)
        num_bytes = 0
        with map_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                atomic_path(path) as partial,
                partial.open("wb") as output,
                self._request("GET", get_result_path(file)) as response,
            ):
                for chunk in response.iter_bytes():
                    num_bytes += output.write(chunk)
                check_size(file, num_bytes)
        return path

    def read(self, file: RemoteFile | RemotePiece) -> bytes:
        """Return the bytes of one file of a result.

        Args:
            file: one of `RemoteGeneration.files`.

        Raises:
            NotFoundError: the service no longer keeps the file.
            ConnectionFailedError: the connection was lost before the last byte.
        """
        with self._request("GET", get_result_path(file)) as response:
            content = response.read()
        check_size(file, len(content))
        return content

    def cancel(self, request_id: str) -> bool:
        """Cancel a request; return False if no request with this id is running.

        Args:
            request_id: the id given to `generate`.
        """
        try:
            with self._request("POST", get_cancel_path(request_id)) as response:
                response.read()
        except NotFoundError:
            return False
        return True

    def list_models(self) -> list[RemoteModel]:
        """Return the models that the service serves, at least one.

        Raises:
            NotReadyError: the model is not loaded yet.
            UnauthorizedError: the service asks for another key.
        """
        with self._request("GET", "/v1/models") as response:
            return parse_models(response.read())

    def is_ready(self) -> bool:
        """Return whether the model is loaded and warmed up.

        Raises:
            ModelFailedError: the model could not be loaded, so the service will not become ready.
        """
        try:
            with self._request("GET", "/readyz") as response:
                response.read()
        except NotReadyError:
            return False
        return True

    def _generate(
        self, request: PreparedRequest, on_update: OnUpdate | None, on_sound: OnSound | None
    ) -> RemoteGeneration:
        reader = ResponseReader(on_update, self._timeout_seconds, on_sound)
        with (
            request.open_form() as form,
            self._request("POST", "/v1/generate", **form) as response,
        ):
            for chunk in response.iter_bytes():
                if (result := reader.feed(chunk)) is not None:
                    return result
        raise ConnectionFailedError(f"{self._http.base_url} broke off before the result; try again")

    @contextmanager
    def _request(self, method: str, path: str, **content: object) -> Iterator[httpx.Response]:
        with (
            map_connection_errors(self._http.base_url),
            self._http.stream(method, path, **content) as response,  # type: ignore[arg-type]
        ):
            if not response.is_success:
                body = response.read()
                raise parse_error_response(response.status_code, response.headers, body)
            yield response
