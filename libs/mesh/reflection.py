"""Tells anybody what the contract says. An answer is a thousand times as long as its question, so questions are counted."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

from grpc import aio
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from tradeloom.policy.v1 import policy_pb2

from libs.mesh.contract import Method
from libs.mesh.identity import address_of, network_of
from libs.mesh.limits import Limiter

# Of one caller; a program asks one for each file of what it wants to call.
QUESTIONS_PER_SECOND = 50.0

SERVICE: Any = reflection_pb2.DESCRIPTOR.services_by_name[reflection.SERVICE_NAME.rpartition(".")[2]]
POLICY = policy_pb2.Policy(access=policy_pb2.ACCESS_PUBLIC, limit=policy_pb2.LIMIT_STREAM)
METHODS = {
    path: Method(path, descriptor, POLICY)
    for descriptor in SERVICE.methods
    for path in [f"/{reflection.SERVICE_NAME}/{descriptor.name}"]
}


class Reflection(reflection_pb2_grpc.ServerReflectionServicer):
    """Served behind the concerns, like any stream of ours: counted, bounded, and ended at a drain."""

    def __init__(self, names: Iterable[str]) -> None:
        self._answers: Any = reflection.aio.ReflectionServicer([*names, reflection.SERVICE_NAME])
        self._limiter = Limiter("reflection", QUESTIONS_PER_SECOND)

    async def ServerReflectionInfo(
        self, request_iterator: AsyncIterable[Any], context: aio.ServicerContext
    ) -> AsyncIterator[Any]:
        caller = network_of(address_of(context))

        async def counted() -> AsyncIterator[Any]:
            async for question in request_iterator:
                self._limiter.take(caller)
                yield question

        async for answer in self._answers.ServerReflectionInfo(counted(), context):
            yield answer
