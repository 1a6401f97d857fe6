"""Side-by-side measurements of the mesh: `python -m bench [NAME]`."""

import os

# As in the tests: a process that is started beside busy calls must not die of gRPC's own handling of forks.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
