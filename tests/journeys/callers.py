"""The ways to call the mesh through its one port: the same two questions, answered in the same JSON."""

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
from google.api import annotations_pb2
from google.protobuf import json_format

from libs.mesh.contract import methods
from tests.page import missing

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
    """The JSON of grpcurl and buf has camelCase names; REST has the contract's."""
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
        found.append(document)
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


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=2 * CALL_SECONDS)


def follow(arguments: list[str], enough: Enough, told: Callable[[str], list[Json]]) -> list[Json]:
    """What a program prints while its stream goes on, up to the message with which it is enough."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    text = ""
    try:
        for line in process.stdout:
            text += line
            # A message ends with its outermost brace.
            if line.endswith("}\n") and not line.startswith(" ") and (found := first(told(text), enough)):
                return found
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    raise AssertionError(f"the stream ended after {text}")


def of_this_python(name: str) -> str:
    """The program that a package of the extra `dev` brings, else the machine's."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or missing(name)


def camel_documents(text: str) -> list[Json]:
    return [snake(document) for document in documents(text)]


class Grpcurl:
    """grpcurl, which learns the contract from the server's reflection."""

    def __init__(self, edge: str) -> None:
        self._edge = edge
        self._program = of_this_python("grpcurl")

    def arguments(self, method: str, request: Json, token: str) -> list[str]:
        header = ["-H", f"authorization: Bearer {token}"] if token else []
        asked = ["-max-time", str(CALL_SECONDS), "-d", json.dumps(request)]
        return [self._program, "-plaintext", *header, *asked, self._edge, path_of(method)[1:]]

    def call(self, method: str, request: Json, token: str = "") -> Json:
        done = run(self.arguments(method, request, token))
        if done.returncode:
            name = re.search(r"Code: (\w+)", done.stderr)
            assert name, done.stderr
            code = re.sub(r"(?<!^)(?=[A-Z])", "_", name[1]).upper()
            raise Refused(grpc.StatusCode[code].value[0], done.stderr)
        found = camel_documents(done.stdout)
        return found[0] if found else {}

    def stream(self, method: str, request: Json, token: str, enough: Enough) -> list[Json]:
        return follow(self.arguments(method, request, token), enough, camel_documents)


class BufCurl:
    """buf's own client, which speaks Connect and learns the contract from reflection too."""

    def __init__(self, edge: str) -> None:
        self._edge = edge
        self._program = of_this_python("buf")

    def arguments(self, method: str, request: Json, token: str) -> list[str]:
        header = ["--header", f"authorization: Bearer {token}"] if token else []
        asked = ["--timeout", f"{CALL_SECONDS}s", "--data", json.dumps(request)]
        return [
            self._program,
            "curl",
            "--protocol",
            "connect",
            *header,
            *asked,
            f"http://{self._edge}{path_of(method)}",
        ]

    def call(self, method: str, request: Json, token: str = "") -> Json:
        done = run(self.arguments(method, request, token))
        if done.returncode:
            refusal = json.loads(done.stderr)
            raise Refused(grpc.StatusCode[refusal["code"].upper()].value[0], refusal["message"])
        (found,) = camel_documents(done.stdout)
        return found

    def stream(self, method: str, request: Json, token: str, enough: Enough) -> list[Json]:
        return follow(self.arguments(method, request, token), enough, camel_documents)


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
    """curl on the REST paths; a stream is one JSON object a line."""

    def __init__(self, edge: str) -> None:
        self._edge = edge
        self._program = shutil.which("curl") or missing("curl")

    def arguments(self, method: str, request: Json, token: str) -> list[str]:
        rule = methods()[path_of(method)].descriptor.GetOptions().Extensions[annotations_pb2.http]
        path, rest = rule.get or rule.put or rule.post or rule.delete, dict(request)
        for name in re.findall(r"{(\w+)}", path):
            path = path.replace(f"{{{name}}}", str(rest.pop(name)))
        if rule.get or rule.delete:
            pairs = [
                (name, each) for name, value in rest.items() for each in (value if type(value) is list else [value])
            ]
            content = ["--get", *(part for name, each in pairs for part in ("--data-urlencode", f"{name}={each}"))]
        else:
            content = ["--header", "content-type: application/json", "--data", json.dumps(rest)]
        header = ["--header", f"authorization: Bearer {token}"] if token else []
        verb = ["--request", rule.WhichOneof("pattern").upper()]
        how = [*verb, "-sSN", "--noproxy", "*", "--max-time", str(CALL_SECONDS)]
        return [self._program, *how, *header, *content, f"http://{self._edge}{path}"]

    def call(self, method: str, request: Json, token: str = "") -> Json:
        done = run([*self.arguments(method, request, token), "--write-out", "\n%{http_code}"])
        assert done.returncode == 0, done.stderr
        body, _, status = done.stdout.rpartition("\n")
        answer = json.loads(body)
        if status != "200":
            raise Refused(answer["code"], answer["message"])
        return answer

    def stream(self, method: str, request: Json, token: str, enough: Enough) -> list[Json]:
        return follow(self.arguments(method, request, token), enough, documents)
