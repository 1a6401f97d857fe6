"""Four ways to call the mesh through its one port: the same two questions, answered in the same JSON."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import grpc
import requests
from google.protobuf import json_format
from tradeloom.policy.v1 import policy_pb2

from libs.mesh.contract import methods

CALL_SECONDS = 20
Json = dict[str, Any]
Enough = Callable[[list[Json]], bool]


class Refused(Exception):
    """The call was refused: the status code's number, and what the server said."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Caller(Protocol):
    def call(self, method: str, request: Json, token: str = "") -> Json: ...
    def stream(self, method: str, request: Json, token: str, enough: Enough) -> list[Json]:
        """The stream's first messages, heartbeats left out, up to the one with which it is enough."""
        ...


def path_of(method: str) -> str:
    """ "OrderService.PlaceOrder" as it travels."""
    service, name = method.split(".")
    return next(path for path in methods() if path.endswith(f".{service}/{name}"))


def snake(value: Any) -> Any:
    """The JSON of grpcurl has camelCase names; REST has the contract's."""
    if isinstance(value, dict):
        return {re.sub(r"(?<!^)(?=[A-Z])", "_", key).lower(): snake(inner) for key, inner in value.items()}
    return [snake(inner) for inner in value] if isinstance(value, list) else value


def documents(text: str) -> list[Json]:
    """Concatenated JSON objects; a last one that was cut off is left out."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        try:
            document, end = decoder.raw_decode(text, at)
        except ValueError:
            break
        found.append(snake(document))
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found


def first(messages: Iterable[Json], enough: Enough) -> list[Json]:
    """The messages up to the one with which it is enough, heartbeats left out; none if that never comes."""
    found: list[Json] = []
    for message in messages:
        if not message.get("heartbeat"):
            found.append(message)
            if enough(found):
                return found
    return []


def many(count: int) -> Enough:
    return lambda found: len(found) >= count


class Grpcurl:
    """grpcurl, which learns the contract from the server's reflection."""

    def __init__(self, edge: str) -> None:
        self._edge = edge
        beside = Path(sys.executable).parent / "grpcurl"
        self._program = str(beside) if beside.exists() else shutil.which("grpcurl")
        assert self._program, "grpcurl is a package of the extra `dev`"

    def arguments(self, method: str, request: Json, token: str) -> list[str]:
        header = ["-H", f"authorization: Bearer {token}"] if token else []
        body = ["-d", json.dumps(request)]
        return [str(self._program), "-plaintext", *header, *body, self._edge, path_of(method)[1:]]

    def call(self, method: str, request: Json, token: str = "") -> Json:
        done = subprocess.run(
            self.arguments(method, request, token), check=False, capture_output=True, text=True, timeout=CALL_SECONDS
        )
        if done.returncode:
            name = re.search(r"Code: (\w+)", done.stderr)
            assert name, done.stderr
            code = re.sub(r"(?<!^)(?=[A-Z])", "_", name[1]).upper()
            raise Refused(grpc.StatusCode[code].value[0], done.stderr)
        found = documents(done.stdout)
        return found[0] if found else {}

    def stream(self, method: str, request: Json, token: str, enough: Enough) -> list[Json]:
        process = subprocess.Popen(self.arguments(method, request, token), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        text = ""
        try:
            for line in process.stdout:
                text += line
                if line.startswith("}") and (found := first(documents(text), enough)):
                    return found
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        raise AssertionError(f"the stream ended after {text}")


class Stubs:
    """The generated Python stubs."""

    def __init__(self, edge: str) -> None:
        self._edge = edge

    def _invoke(self, channel: grpc.Channel, method: str, request: Json, token: str) -> Any:
        service, name = method.split(".")
        word = path_of(method).split(".")[1]
        messages = import_module(f"tradeloom.{word}.v1.{word}_pb2")
        stubs = import_module(f"tradeloom.{word}.v1.{word}_pb2_grpc")
        stub = getattr(stubs, f"{service}Stub")(channel)
        message = json_format.ParseDict(request, getattr(messages, f"{name}Request")())
        metadata = [("authorization", f"Bearer {token}")] if token else []
        return getattr(stub, name)(message, metadata=metadata, timeout=CALL_SECONDS)

    def call(self, method: str, request: Json, token: str = "") -> Json:
        with grpc.insecure_channel(self._edge, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                response = self._invoke(channel, method, request, token)
            except grpc.RpcError as error:
                code, details = error.code(), error.details()  # type: ignore[attr-defined] (a call that failed is its error)
                raise Refused(code.value[0], details) from error
            return json_format.MessageToDict(response, preserving_proto_field_name=True)

    def stream(self, method: str, request: Json, token: str, enough: Enough) -> list[Json]:
        with grpc.insecure_channel(self._edge, options=[("grpc.enable_http_proxy", 0)]) as channel:
            responses = self._invoke(channel, method, request, token)
            messages = (json_format.MessageToDict(each, preserving_proto_field_name=True) for each in responses)
            found = first(messages, enough)
            responses.cancel()
            return found


class Curl:
    """curl's requests on the REST paths."""

    def __init__(self, edge: str) -> None:
        self._edge = edge
        self._session = requests.Session()
        self._session.trust_env = False

    def _request(self, method: str, request: Json, token: str, **options: Any) -> requests.Response:
        from google.api import annotations_pb2

        rule = methods()[path_of(method)].descriptor.GetOptions().Extensions[annotations_pb2.http]
        verb, path = ("GET", rule.get) if rule.get else ("POST", rule.post)
        rest = dict(request)
        for name in re.findall(r"{(\w+)}", path):
            path = path.replace(f"{{{name}}}", str(rest.pop(name)))
        headers = {"authorization": f"Bearer {token}"} if token else {}
        content = {"params": rest} if verb == "GET" else {"json": rest}
        url = f"http://{self._edge}{path}"
        return self._session.request(verb, url, headers=headers, timeout=CALL_SECONDS, **content, **options)

    def call(self, method: str, request: Json, token: str = "") -> Json:
        response = self._request(method, request, token)
        if response.status_code != 200:
            status = response.json()
            raise Refused(status["code"], status["message"])
        return response.json()

    def stream(self, method: str, request: Json, token: str, enough: Enough) -> list[Json]:
        with self._request(method, request, token, stream=True) as response:
            return first((json.loads(line) for line in response.iter_lines(chunk_size=1)), enough)


def is_for_users(method: str) -> bool:
    return methods()[path_of(method)].policy.access == policy_pb2.ACCESS_USER
