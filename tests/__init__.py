"""The tests, which start real servers beside gRPC's threads."""

import os

from hypothesis import HealthCheck, settings

# Otherwise gRPC hangs itself into every fork, and one in a hundred children dies in that before it becomes what it was to
# be (measured: 46 of 2,400 beside busy calls, and 0 with this). It must be said before gRPC is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# No test is timed: on a busy machine an example takes as long as it takes.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
