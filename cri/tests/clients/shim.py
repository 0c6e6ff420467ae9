"""As much of an API server as kubectl needs for exec, attach, cp and port-forward with one pod: it tells of the resource
`pods`, answers with a running pod of any name, and passes an upgrade through to the URL that a function gives for it.
"""

import contextlib
import json
import socket
import socketserver
import threading
import urllib.parse


class Shim:
    """Serves on a port of loopback. `lookup(subresource, query)` gives the URL, or raises.

    `upgrades` has what was agreed on: subresources, and the heads of the answers.
    """

    def __init__(self, lookup):
        upgrades = self.upgrades = []

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                serve(self.request, lookup, upgrades)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = "http://127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def serve(link, lookup, upgrades):
    head, rest = head_of(link)
    if not head:
        return
    method, target = head.split(" ")[:2]
    url = urllib.parse.urlsplit(target)
    parts = url.path.strip("/").split("/")
    if parts[:3] == ["api", "v1", "namespaces"] and parts[-1] in ("exec", "attach", "portforward"):
        try:
            place = urllib.parse.urlsplit(lookup(parts[-1], urllib.parse.parse_qs(url.query)))
        except Exception as error:  # noqa: BLE001 Whatever it is, kubectl shows it.
            return answer(link, 500, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(error),
                                      "code": 500})
        lines = head.split("\r\n", 1)[1]
        onward = socket.create_connection((place.hostname, place.port))
        onward.sendall(f"{method} {place.path} HTTP/1.1\r\n{lines}".encode() + rest)
        head, rest = head_of(onward)
        upgrades.append((parts[-1], head))
        link.sendall(head.encode() + rest)
        back = threading.Thread(target=pump, args=(onward, link), daemon=True)
        back.start()
        pump(link, onward)
        back.join()
        onward.close()
        return None
    if parts[:3] == ["api", "v1", "namespaces"]:
        return answer(link, 200, pod(parts[3], parts[5]))
    known = {"api": {"kind": "APIVersions", "versions": ["v1"]}, "api/v1": RESOURCES,
             "apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}}
    return answer(link, 200 if url.path.strip("/") in known else 404, known.get(url.path.strip("/"), {}))


def head_of(link):
    """The head of a request, or of its answer, with its empty line, and what came behind that."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = link.recv(65536)
        if not more:
            return "", b""
        data += more
    head, rest = data.split(b"\r\n\r\n", 1)
    return head.decode() + "\r\n\r\n", rest


def answer(link, status, document):
    body = json.dumps(document).encode()
    link.sendall(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                 "Connection: close\r\n\r\n".encode() + body)


def pump(source, sink):
    """One direction, to its end, which is passed on."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def pod(namespace, name):
    return {
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": namespace, "uid": "1"},
        "spec": {"nodeName": "node", "containers": [{"name": "main", "image": "i", "stdin": True, "tty": True}]},
        "status": {"phase": "Running"},
    }


RESOURCES = {
    "kind": "APIResourceList", "groupVersion": "v1",
    "resources": [{"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get", "list"]}],
}
