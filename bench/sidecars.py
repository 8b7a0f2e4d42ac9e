#!/usr/bin/env python3
"""Pairs of sidecars in the same roles: Maille, Envoy, haproxy, nginx; and no proxy at all.

load generator -> caller's proxy (plain in, mutual TLS out) -> callee's proxy (client certificate required, one L7 policy) -> a small
server; all on loopback, one worker per proxy, no access log. First every set-up must prove that it does the job: the right caller
gets 200, another identity and another path 403, no certificate nothing. CPU is user plus system time of the two proxies alone.
Figures are reported, never asserted.

    cargo xtask bench [--long] [--seconds N] [--rounds N] [--only NAME,...] [--no-envoy]

The short form measures small HTTP/1.1 requests; --long everything. What is not installed is left out, and said so.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import ssl
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import envoy
import haproxy
import maille
import nginx
from lab import (
    BACKEND, BACKEND_H2, BACKEND_TCP, CALLEE, CALLER, CALLER_H2, CALLER_TCP, HOST, Processes, awake, certificates, cpu_s,
    find_envoy, load_program, prove, rss_mb, saturate, sh, start_backend, status_of, stolen_s,
)

IDLE = 1000
BULK_MIB = 1024
HANDSHAKES = 300


class Bench:
    """One measurement of one set-up: the ports to call, and whose CPU counts (nobody's without proxies)."""

    def __init__(self, folder, seconds, pair, ports):
        self.folder, self.seconds, self.pair = folder, seconds, pair
        self.http, self.http2, self.tcp = ports
        self.load = load_program(folder)

    def cpu(self):
        return sum(cpu_s(p) for p in self.pair)

    def requests(self):
        all_ = saturate(self.http, self.pair, self.seconds)
        return {"HTTP/1.1 small: req/s": all_["req/s"], "HTTP/1.1 small: CPU-s per 100k": all_["CPU-s per 100k"]}

    def paced(self):
        times, stolen = self.latencies("rate", "/api/x", "3000", "20", str(self.seconds))
        return {"3,000 req/s: p50 us": times[0], "3,000 req/s: p99 us": times[1], "3,000 req/s: % stolen by the host": stolen}

    def one(self):
        times, _ = self.latencies("one", "/api/x", str(min(self.seconds, 4)))
        return {"one connection: p50 us": times[0]}

    def latencies(self, how, *arguments):
        """p50 and p99 in microseconds, and the percentage of the CPUs' time that the machine's host took meanwhile."""
        with awake():
            before, start = stolen_s(), time.monotonic()
            words = sh(self.load, how, f"127.0.0.1:{self.http}", HOST, *arguments).split()
            share = (stolen_s() - before) / (time.monotonic() - start) / os.cpu_count()
        return [float(word) for word in words[1:3]], share * 100

    def ten_kb(self):
        return {"10 KB: CPU-s per 100k": saturate(self.http, self.pair, self.seconds, "/api/10k")["CPU-s per 100k"]}

    def one_mb(self):
        used = saturate(self.http, self.pair, self.seconds, "/api/1m")
        return {"1 MB: CPU-s per 100k": used["CPU-s per 100k"], "64 x 1 MB: RSS MB": sum(rss_mb(p) for p in self.pair)}

    def streams(self):
        if status_of(self.http2, "--http2-prior-knowledge") != "200":
            return {}
        before = self.cpu()
        text = sh("h2load", "-t1", "-c8", "-m32", f"-D{self.seconds}", "-H", f":authority: {HOST}", f"http://127.0.0.1:{self.http2}/api/x")
        used = self.cpu() - before
        done = int(re.search(r"(\d+) 2xx", text).group(1))
        return {"HTTP/2 8x32: req/s": done / self.seconds, "HTTP/2 8x32: CPU-s per 100k": used / done * 1e5}

    def connections(self):
        if not self.speaks_tcp():
            return {}
        before = self.cpu()
        made = int(sh(self.load, "connect", f"127.0.0.1:{self.tcp}", "8", str(self.seconds)))
        return {"new TCP connection: CPU ms": (self.cpu() - before) / made * 1e3, "new TCP connections/s": made / self.seconds}

    def bulk(self):
        if not self.speaks_tcp():
            return {}
        before, start = self.cpu(), time.monotonic()
        sh(self.load, "bulk", f"127.0.0.1:{self.tcp}", str(BULK_MIB))
        gib = BULK_MIB / 1024
        return {"bulk: CPU-s per GiB": (self.cpu() - before) / gib, "bulk: MiB/s": BULK_MIB / (time.monotonic() - start)}

    def idle(self):
        if not self.pair or not self.speaks_tcp():
            return {}
        before = [rss_mb(p) for p in self.pair]
        holder = subprocess.Popen([self.load, "idle", f"127.0.0.1:{self.tcp}", str(IDLE)], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        if holder.stdout.readline().strip() != "ready":
            return {}
        grown = [rss_mb(p) - b for p, b in zip(self.pair, before)]
        holder.communicate()
        return {"idle connection: KiB, caller": grown[0] * 1024 / IDLE, "idle connection: KiB, callee": grown[1] * 1024 / IDLE}

    def handshakes(self):
        """Full handshakes with the callee alone, by a client that is none of the proxies."""
        if not self.pair:
            return {}
        context = ssl.create_default_context(cafile=str(self.folder / "root.pem"))
        context.check_hostname = False
        context.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        context.set_alpn_protocols(["http/1.1"])
        before = cpu_s(self.pair[1])
        for _ in range(HANDSHAKES):
            with socket.create_connection(("127.0.0.1", CALLEE)) as plain, context.wrap_socket(plain) as tls:
                tls.sendall(f"GET /api/x HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                if not tls.recv(65536).startswith(b"HTTP/1.1 200"):
                    sys.exit("a good certificate was refused")
        return {"handshake and request: callee CPU ms": (cpu_s(self.pair[1]) - before) / HANDSHAKES * 1e3}

    def speaks_tcp(self):
        try:
            with socket.create_connection(("127.0.0.1", self.tcp), 2) as stream:
                stream.settimeout(2)
                stream.sendall(b"ex")
                return stream.recv(1) == b"x"
        except OSError:
            return False


SHORT = ("requests", "paced")
LONG = ("requests", "paced", "one", "ten_kb", "streams", "connections", "handshakes", "bulk", "idle", "one_mb")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=6, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each; the median is shown")
    parser.add_argument("--long", action="store_true", help="measure everything")
    parser.add_argument("--only", help="of the set-ups, these (direct, Maille, single, Envoy, haproxy, nginx)")
    parser.add_argument("--measure", help="of the measurements, these: " + ", ".join(LONG))
    parser.add_argument("--no-envoy", action="store_true")
    arguments = parser.parse_args()
    binary = os.environ.get("MAILLE_BIN") or shutil.which("maille") or sys.exit("MAILLE_BIN names no binary")
    processes = Processes()
    # Ended by somebody, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="maille-bench-") as name:
        folder = pathlib.Path(name)
    
        certificates(folder)
        try:
            run(arguments, os.path.abspath(binary), folder, processes)
        finally:
            processes.stop()


def setups(arguments, binary, folder, processes):
    """Name to what starts it: caller's, callee's and another caller's proxy."""
    found = {"direct": None, "Maille": lambda: maille.start(binary, folder, processes)}
    if arguments.long:
        # The same without shared connections between the two, as towards a peer that is not Maille.
        found["single"] = lambda: maille.start(binary, folder, processes, multiplexes=False)
    if not arguments.no_envoy and (envoy_program := find_envoy(folder)):
        found["Envoy"] = lambda: envoy.start(envoy_program, folder, processes)
    for name, module in (("haproxy", haproxy), ("nginx", nginx)):
        if program := module.find():
            found[name] = lambda module=module, program=program: module.start(program, folder, processes)
        else:
            print(f"{name} is not installed (Debian has it as package {name}), so it is left out")
    if arguments.only:
        found = {name: start for name, start in found.items() if name in arguments.only.split(",")}
    return found


def run(arguments, binary, folder, processes):
    start_backend(folder, processes)
    if program := nginx.find():
        nginx.start_file(program, folder, processes, "backend", nginx.http2_backend(folder))
    else:
        print("without nginx there is no application of HTTP/2, so its rows are left out")
    measurements = arguments.measure.split(",") if arguments.measure else LONG if arguments.long else SHORT
    results = {}
    found = setups(arguments, binary, folder, processes)
    for turn in range(arguments.rounds):
        # In one order and then the other: whoever comes second finds another machine.
        for name, start in list(found.items())[:: 1 if turn % 2 == 0 else -1]:
            pair, ports = [], (BACKEND, BACKEND_H2, BACKEND_TCP)
            if start:
                *pair, other = start()
                prove(name)
                processes.stop([other])
                ports = (CALLER, CALLER_H2, CALLER_TCP)
                results.setdefault("idle: RSS MB of one", {}).setdefault(name, []).append(max(rss_mb(p) for p in pair))
            bench = Bench(folder, arguments.seconds, pair, ports)
            for measurement in measurements:
                for row, value in getattr(bench, measurement)().items():
                    results.setdefault(row, {}).setdefault(name, []).append(value)
            processes.stop(pair)
    table(arguments, found, results)


def table(arguments, found, results):
    load = os.getloadavg()[0]
    paced = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    print(f"medians of {arguments.rounds} rounds of {arguments.seconds} s; {os.cpu_count()} CPUs, load {load:.1f}, TCP's congestion "
          f"control {paced}; in brackets: Envoy = 1")
    print(f"{'':38}" + "".join(f"{name:>17}" for name in found))
    for row, by_name in results.items():
        medians = {name: statistics.median(values) for name, values in by_name.items()}
        line = f"{row:38}"
        for name in found:
            if name not in medians or (name == "direct" and "CPU" in row):
                line += f"{'-':>17}"
                continue
            base = medians.get("Envoy")
            ratio = f" ({medians[name] / base:.2f})" if base else ""
            line += f"{medians[name]:>{17 - len(ratio)}.2f}{ratio}"
        print(line)


if __name__ == "__main__":
    main()
