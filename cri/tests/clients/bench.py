"""conward-cri beside containerd: the same image, runc, CNI configuration and client, in turn, one request at a time.

    bench.py [--pods N] [--json FILE]

    bench.py [--rounds N]       pairs of lives, 15 unless told

Prints medians and minima in milliseconds, the median of the ratios of the pairs, and private memory with N pods. The
monitors and containerd's shims are the other processes of a pod; containerd's pause process is not counted.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from server import Server, types

# Ratios that are not to be exceeded.
AIMS = {"pod start, CNI": 0.8, "pod start, host network": 0.5, "container create + start": 0.6, "ExecSync true": 0.8,
        "container stop, timeout 0": 0.7, "container remove": 1.0}

NETWORK = {
    "cniVersion": "0.4.0",
    "name": "bench",
    "plugins": [
        {"type": "bridge", "bridge": "bench0", "isGateway": True, "ipMasq": True,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


class Containerd(Server):
    """The other one, behind the same short ways."""

    def __init__(self, scratch, api, conf_dir):
        super().__init__("containerd", scratch, api)
        plugins = next(path for path in ["/usr/lib/cni", "/opt/cni/bin"] if os.path.isdir(path))
        self.config.write_text(f"""
version = 2
root = '{self.dir}/root'
state = '{self.dir}/run'
[grpc]
address = '{self.socket}'
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = 'localhost/busybox:latest'
# Its pause wants less than this host may give.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = 'overlayfs'
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = '{plugins}'
conf_dir = '{conf_dir}'
""")

    def words(self, *_):
        return ["containerd", "--config", str(self.config), "--log-level", "error"]

    def load(self, archive):
        ctr = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io"]
        subprocess.run([*ctr, "images", "import", archive], check=True, stdout=subprocess.DEVNULL)

    def answers(self):
        return super().answers() and all(
            c.status for c in self.runtime.Status(self.types.StatusRequest()).status.conditions)


def archive(tree, scratch):
    """A docker archive of a directory with the name of the image that both servers are to have."""
    import hashlib
    import tarfile

    layer = pathlib.Path(scratch) / "layer.tar"
    subprocess.run(["tar", "-C", str(tree), "-cf", str(layer), "."], check=True)
    digest = hashlib.sha256(layer.read_bytes()).hexdigest()
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
              "config": {"Cmd": ["sleep", "1000000"], "Env": ["PATH=/bin:/usr/bin"]}}
    (pathlib.Path(scratch) / "config.json").write_text(json.dumps(config))
    manifest = [{"Config": "config.json", "RepoTags": ["localhost/busybox:latest"], "Layers": ["layer.tar"]}]
    (pathlib.Path(scratch) / "manifest.json").write_text(json.dumps(manifest))
    path = pathlib.Path(scratch) / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name in ["manifest.json", "config.json", "layer.tar"]:
            tar.add(pathlib.Path(scratch) / name, name)
    return str(path)


def timed(times, name, call):
    began = time.perf_counter()
    value = call()
    times.setdefault(name, []).append((time.perf_counter() - began) * 1000)
    return value


def life(s, times, number, host):
    """One pod from beginning to end, each call measured."""
    kind = "pod start, host network" if host else "pod start, CNI"
    run = (lambda: s.host_pod(f"b{number}")) if host else (lambda: s.pod(f"b{number}"))
    pod = timed(times, kind, run)
    container = timed(times, "container create + start", lambda: s.run(pod, ["sleep", "1000000"]))
    for _ in range(3):
        timed(times, "ExecSync true", lambda: s.exec(container, "true"))
    timed(times, "container stop, timeout 0", lambda: s.end(container, 0))
    timed(times, "container remove", lambda: s.remove(container))
    timed(times, "pod stop + remove", lambda: s.remove_pod(pod))


def private(pid):
    """Private memory in KiB."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return 0


def helpers(s):
    own = str(s.dir).encode()
    found = []
    for process in pathlib.Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) in (s.process.pid, os.getpid()):
            continue
        with contextlib.suppress(OSError):
            name = pathlib.Path(os.readlink(process / "exe")).name
            if name in ("conward", "containerd-shim-runc-v2", "conward-hold") and own in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def alone(s, scratch, times):
    """What runc itself takes to create and start one of our containers, called as anybody would."""
    pod = s.host_pod("alone")
    container = s.run(pod, ["sleep", "1000000"])
    bundle = scratch / "alone"
    bundle.mkdir()
    config = json.loads((s.dir / "run/containers" / container / "config.json").read_text())
    config["root"]["path"] = str(s.dir / "run/containers" / container / "rootfs")
    config["linux"]["cgroupsPath"] = f"/conward/{pod[0]}/alone"
    (bundle / "config.json").write_text(json.dumps(config))
    runc = ["runc", "--root", str(scratch / "alone-state")]

    def call(*words):
        subprocess.run([*runc, *words, "alone"], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def both():
        call("create", "--bundle", str(bundle))
        call("start")

    for _ in range(10):
        timed(times, "runc alone: create + start", both)
        call("delete", "--force")
    s.remove_pod(pod)


def with_pods(s, count):
    pods = [s.host_pod(f"m{number}") for number in range(count)]
    for pod in pods:
        s.run(pod, ["sleep", "1000000"])
    time.sleep(3)
    own, others = private(s.process.pid), [private(pid) for pid in helpers(s)]
    for pod in pods:
        s.remove_pod(pod)
    return own, sum(others), len(others)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    words = parser.parse_args()
    if not shutil.which("containerd"):
        print("skipped: containerd is not installed", file=sys.stderr)
        return 77
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="conward-bench-"))
    conf_dir = scratch / "net.d"
    conf_dir.mkdir()
    (conf_dir / "10-bench.conflist").write_text(json.dumps(NETWORK))
    types_dir = scratch / "types"
    types_dir.mkdir()
    api = types(os.environ["CRI_PROTO"], types_dir)
    # What does not survive a reboot is in memory, as on any host.
    in_memory = [scratch / name / "run" for name in ["ours", "theirs"]]
    for run in in_memory:
        run.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(run)], check=True)
    ours = Server(os.environ["CONWARD_CRI"], scratch / "ours", api,
                  f"default_runtime = 'runc'\n[runtimes.runc]\npath = 'runc'\n[network]\nconf_dir = '{conf_dir}'\n")
    theirs = Containerd(scratch / "theirs", api, conf_dir)
    tree = scratch / "tree"
    for name in ["bin", "proc", "sys", "dev", "tmp", "etc"]:
        (tree / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), tree / "bin/busybox")
    for name in ["sh", "sleep", "true", "cat"]:
        os.symlink("busybox", tree / "bin" / name)
    subprocess.run(ours.words("import", "localhost/busybox:latest", str(tree)), check=True)
    ours.start()
    theirs.start()
    theirs.load(archive(tree, scratch))
    servers = {"conward-cri": ours, "containerd": theirs}
    times = {name: {} for name in servers}
    idle = {name: private(s.process.pid) for name, s in servers.items()}
    try:
        for number in range(words.rounds):
            order = list(servers.items())
            for name, s in order if number % 2 else order[::-1]:
                life(s, times[name], number, host=False)
                life(s, times[name], number, host=True)
        floor = {}
        alone(ours, scratch, floor)
        memory = {name: with_pods(s, words.pods) for name, s in servers.items()}
    finally:
        for s in servers.values():
            with contextlib.suppress(Exception):
                s.clear()
            s.stop(signal.SIGTERM)
        for run in in_memory:
            subprocess.run(["umount", "--lazy", str(run)], check=False)
        shutil.rmtree(scratch, ignore_errors=True)
    report(times, floor, idle, memory, words)
    return 0


def report(times, floor, idle, memory, words):
    version = subprocess.run(["containerd", "--version"], capture_output=True, text=True).stdout.split()[2]
    print(f"conward-cri beside containerd {version}, runc, {words.rounds} rounds in turn; p50 / min, ms\n")
    print(f"{'call':28} {'containerd':>15} {'conward-cri':>15} {'ratio':>7} {'aim':>5}")
    figures = {}
    for call, theirs in times["containerd"].items():
        ours = times["conward-cri"][call]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs))
        figures[call] = ratio
        shown = [f"{statistics.median(each):.1f} / {min(each):.1f}" for each in (theirs, ours)]
        print(f"{call:28} {shown[0]:>15} {shown[1]:>15} {ratio:6.2f}x {AIMS.get(call, ''):>5}")
    for call, each in floor.items():
        print(f"{call:28} {f'{statistics.median(each):.1f} / {min(each):.1f}':>15}")
    print(f"\n{'private memory, KiB':28} {'containerd':>15} {'conward-cri':>15}")
    print(f"{'server, idle':28} {idle['containerd']:15} {idle['conward-cri']:15}")
    rows = {name: memory[name] for name in ["containerd", "conward-cri"]}
    print(f"{f'server, {words.pods} pods':28} {rows['containerd'][0]:15} {rows['conward-cri'][0]:15}")
    each = {name: total // max(1, words.pods) for name, (_, total, _) in rows.items()}
    print(f"{'other processes, per pod':28} {each['containerd']:15} {each['conward-cri']:15}")
    if words.json:
        pathlib.Path(words.json).write_text(json.dumps({"ratios": figures, "memory": rows}))


if __name__ == "__main__":
    sys.exit(main())
