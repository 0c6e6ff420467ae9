"""The cases of every_rpc, by what they are about; and what several of them need."""

import grpc

CASES = []
Code = grpc.StatusCode
# The suite has a network of its own.
METRICS_ADDRESS = "127.0.0.1:9464"


def case(run):
    CASES.append(run)
    return run


def each_handler(s):
    """Names of the runtimes that are there: what a container may do must not depend on which it is."""
    names = [handler.name for handler in s.runtime.Status(s.types.StatusRequest()).runtime_handlers]
    return [name for name in names if name]


def secure(s, **fields):
    return s.types.LinuxContainerConfig(security_context=s.types.LinuxContainerSecurityContext(**fields))
