"""Every RPC of the CRI, called by an independent gRPC stack. The cases are in the directory calls.

    every_rpc.py [WORD...]     cases whose name contains one of the words; --list shows them, KEEP=1 keeps a failure's files

Environment: CONWARD_CRI (program), CRI_PROTO (the CRI's definition). cri/tests/run starts it in namespaces of its own.
"""

import sys

import calls
# Each adds its cases, which run in this order.
from calls import about, images, pods, networks, users, containers, security, mounts, resources, execs, figures, events, ends  # noqa: F401
from server import main, serving


def setup(scratch):
    return serving(scratch, f"metrics_address = '{calls.METRICS_ADDRESS}'\n", busybox=True)


if __name__ == "__main__":
    sys.exit(main(calls.CASES, setup))
