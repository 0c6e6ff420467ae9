"""CNI configurations, as an administrator puts them there."""

import contextlib
import ipaddress
import pathlib
import subprocess

from server import Server, check, same, until

from . import case
from .pods import get

EXAMPLES = pathlib.Path(__file__).parents[4] / "docs/examples"


def configured(s, name, number):
    """A server whose only configuration is this example, unchanged."""
    place = s.dir / f"network-{number}"
    (place / "net.d").mkdir(parents=True)
    (place / "net.d" / name).write_bytes((EXAMPLES / name).read_bytes())
    server = Server(s.program, place, (s.types, s.stubs), f"[network]\nconf_dir = '{place}/net.d'\n")
    server.import_busybox()
    return server


def addresses(s, pod):
    network = s.runtime.PodSandboxStatus(s.types.PodSandboxStatusRequest(pod_sandbox_id=pod[0])).status.network
    return [ipaddress.ip_address(text) for text in [network.ip, *(more.ip for more in network.additional_ips)]]


def page(s, container, address):
    """What a container gets from port 80 of an address. (wget of a static busybox does not do without the host's libraries.)"""
    script = f"printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 80"
    return s.exec(container, "sh", "-c", script).stdout


@case
def network_examples(s):
    """The conflist of containerd's documentation and the conf of CRI-O's, unchanged: both families, routes, ports"""
    t = s.types
    for number, (name, subnets, gateways, port) in enumerate([
            ("10-containerd-net.conflist", ["10.88.0.0/16", "2001:4860:4860::/64"], ["10.88.0.1", "2001:4860:4860::1"], 18081),
            ("10-crio-bridge.conf", ["10.85.0.0/16", "1100:200::/24"], ["10.85.0.1", "1100:200::1"], None)]):
        # The built-in bridge, where no pod is now, has addresses of the same kind.
        subprocess.run(["ip", "link", "delete", "conward0"], check=False, capture_output=True)
        server = configured(s, name, number).start()
        try:
            ports = [t.PortMapping(container_port=80, host_port=port)] if port else []
            pod = server.pod("example", port_mappings=ports)
            web = server.run(pod, ["sh", "-c", "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www"])
            own = addresses(server, pod)
            same("families", [address in ipaddress.ip_network(subnet) for address, subnet in zip(own, subnets)], [True, True])
            for gateway in gateways:
                until(lambda: not server.exec(web, "ping", "-c", "1", "-W", "1", gateway).exit_code, f"{gateway} answers the pod", 20)
            other = server.pod("neighbour")
            asks = server.run(other, "exec sleep 1000")
            for address in own:
                until(lambda: b"hello" in page(server, asks, address), f"{address} answers another pod", 20)
                check(b"hello" in (get(str(address), 80) or b""), f"{address} answers the host")
            routes = server.exec(web, "ip", "route").stdout.decode()
            check(f"default via {gateways[0]}" in routes, f"a default route in {routes}")
            if port:
                check(b"hello" in (get("127.0.0.1", port) or b""), "the host's port leads to the pod")
            server.remove_pod(pod)
            server.remove_pod(other)
            network = "containerd-net" if port else "crio"
            left = [path.name for path in pathlib.Path(f"/var/lib/cni/networks/{network}").iterdir() if path.name[0].isdigit()]
            same("addresses left", left, [])
            server.stop()
        finally:
            if server.process:
                with contextlib.suppress(Exception):
                    server.clear()
                server.process.kill()
            # The next one has other addresses for a bridge of the same name.
            subprocess.run(["ip", "link", "delete", "cni0"], check=False, capture_output=True)
