"""Events."""

import contextlib
import threading
import time

import grpc

from server import check, same, until

from . import case


class Listener:
    """A client of GetContainerEvents. It reads all the time, or only when told to."""

    def __init__(self, s, reads=True):
        self.stream = s.runtime.GetContainerEvents(s.types.GetEventsRequest())
        self.seen, self.go = [], threading.Event()
        if reads:
            self.go.set()
        threading.Thread(target=self.listen, daemon=True).start()
        time.sleep(0.3)

    def listen(self):
        self.go.wait()
        with contextlib.suppress(grpc.RpcError):
            for event in self.stream:
                self.seen.append(event)

    def of(self, container):
        return [event for event in self.seen if event.container_id == container]


@case
def events(s):
    """GetContainerEvents: a life as it happens, with the state of the whole pod, for several clients"""
    t = s.types
    listeners = [Listener(s) for _ in range(3)]
    pod = s.host_pod("events")
    other = s.run(pod, "exec sleep 1000", name="other")
    container = s.run(pod, "exit 5")
    s.ended(container)
    s.remove(container)
    s.remove_pod(pod)
    kinds = [t.CONTAINER_CREATED_EVENT, t.CONTAINER_STARTED_EVENT, t.CONTAINER_STOPPED_EVENT, t.CONTAINER_DELETED_EVENT]
    for listener in listeners:
        for one in [container, other, pod[0]]:
            until(lambda: [e.container_event_type for e in listener.of(one)] == kinds, f"all four events of {one}")
        times = [event.created_at for event in listener.of(container)]
        check(times == sorted(times) and times[0] > 0, f"{times}")
        for event in listener.of(container) + listener.of(other) + listener.of(pod[0]):
            same("pod in the event", (event.pod_sandbox_status.id, event.pod_sandbox_status.metadata.name), (pod[0], "events"))
        _, started, stopped, deleted = listener.of(container)
        same("containers at the end", {c.id: (c.state, c.exit_code, c.reason) for c in stopped.containers_statuses},
             {other: (t.CONTAINER_RUNNING, 0, ""), container: (t.CONTAINER_EXITED, 5, "Error")})
        check(all(c.started_at > 0 and c.image_ref and c.log_path for c in started.containers_statuses), "whole statuses")
        same("after the removal", [c.id for c in deleted.containers_statuses], [other])
        same("a pod that is gone", listener.of(pod[0])[-1].pod_sandbox_status.state, t.SANDBOX_NOTREADY)
        listener.stream.cancel()


@case
def events_slow(s):
    """GetContainerEvents: one who does not read holds nobody up, and still learns how everything ended"""
    t = s.types
    slow, quick = Listener(s, reads=False), Listener(s)
    pod = s.host_pod("events-slow")
    big = {"text": "x" * 200_000}
    containers = []
    for number in range(12):
        containers.append(s.run(pod, f"exit {number}", name=f"one{number}", annotations=big))
        s.ended(containers[-1])
    for container in containers[::2]:
        s.remove(container)
    until(lambda: all(quick.of(c) and quick.of(c)[-1].container_event_type >= t.CONTAINER_STOPPED_EVENT for c in containers), "the quick one has all", 30)
    same("the slow one has nothing", slow.seen, [])
    slow.go.set()
    until(lambda: len(slow.seen) >= len(quick.seen), "the slow one has caught up", 30)
    for number, container in enumerate(containers):
        last = slow.of(container)[-1]
        wanted = t.CONTAINER_STOPPED_EVENT if number % 2 else t.CONTAINER_DELETED_EVENT
        same("the last of each", last.container_event_type, wanted)
        (stopped,) = [e for e in slow.of(container) if e.container_event_type == t.CONTAINER_STOPPED_EVENT]
        same("exit code", [c.exit_code for c in stopped.containers_statuses if c.id == container], [number])
    slow.stream.cancel()
    quick.stream.cancel()
    s.remove_pod(pod)
