#!/usr/bin/env python3
"""What many policies cost: one and 5,000 of them on the callee, through the pair of sidecars, taking turns.

Of the many, one allows the request, as alone; the others are near misses: the same caller on other paths or with other
headers, other callers on the same path, and DENY rules for paths nobody asks for. The pairs run side by side and are
measured in turn, so that a change of the machine's mood meets both. Figures are reported, never asserted.

    cargo xtask bench policies [--count N] [--seconds S] [--rounds R] [--envoy]
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import sys
import tempfile

import envoy
import maille
from lab import ADMIN, BACKEND, ID, Processes, certificates, find_envoy, prove, rss_mb, saturate, start_backend, status_of

BASE = 18200


def near_miss(index):
    """One policy that does not fit the request of the benchmark: action, caller, method, path prefix, header."""
    kinds = [
        ("ALLOW", "client", "GET", f"/api/v{index}/", None),
        ("ALLOW", f"other-{index}", "GET", "/api/", None),
        ("DENY", None, None, f"/admin-{index}", None),
        ("ALLOW", "client", "GET", "/api/", ("x-tenant", f"tenant-{index}")),
    ]
    return kinds[index % len(kinds)]


def all_policies(count):
    """`count` of them; the first is the one that allows."""
    return [("ALLOW", "client", "GET", "/api/", None)] + [near_miss(index) for index in range(count - 1)]


def as_istio(policies):
    """AuthorizationPolicies, as the proxy's file has them."""
    for index, (action, caller, method, prefix, header) in enumerate(policies):
        operation = {"paths": [prefix + "*"]} | ({"methods": [method]} if method else {})
        rule = {"to": [{"operation": operation}]}
        if caller:
            rule["from"] = [{"source": {"principals": [f"cluster.local/ns/bench/sa/{caller}"]}}]
        if header:
            rule["when"] = [{"key": f"request.headers[{header[0]}]", "values": [header[1]]}]
        yield {"namespace": "bench", "name": f"p{index}", "spec": {"action": action, "rules": [rule]}}


def as_envoy(policies):
    """The RBAC filters that Istio would make of them."""
    by_action = {"DENY": {}, "ALLOW": {}}
    for index, (action, caller, method, prefix, header) in enumerate(policies):
        principal = ID + caller if caller else None
        by_action[action][f"ns[bench]-policy[p{index}]-rule[0]"] = envoy.rule(principal, method, prefix, header)
    return [envoy.rbac(action, rules) for action, rules in by_action.items() if rules]


def start_maille(binary, folder, processes, number, policies):
    """A pair, and a proxy of another caller: callers' ports, processes."""
    caller, other, callee = (BASE + 10 * number + offset for offset in range(3))
    files = {
        f"client-{number}": maille.caller("client", caller, callee),
        f"callee-{number}": maille.callee(callee, list(as_istio(policies))),
        f"other-{number}": maille.caller("other", other, callee),
    }
    for file, facts in files.items():
        (folder / f"{file}.yaml").write_text(json.dumps(facts))
    started = [processes.start(*maille.command(binary, f"{file}.yaml"), cwd=folder) for file in files]
    return caller, other, callee, started


def start_envoy(binary, folder, processes, number, policies):
    """The same of Envoy."""
    caller, other, callee = (BASE + 10 * number + offset for offset in range(3))
    admin, certs = ADMIN + 10 * number, str(folder)
    configurations = {
        f"e-client-{number}": envoy.client(caller, callee, admin, certs, ID + "server"),
        f"e-callee-{number}": envoy.server(
            callee, BACKEND, admin + 1, certs, "spiffe://cluster.local/", ID + "client", as_envoy(policies)
        ),
        f"e-other-{number}": envoy.client(other, callee, admin + 2, certs, ID + "server", name="other"),
    }
    return caller, other, callee, envoy.start_files(binary, folder, processes, configurations)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="how many policies are many")
    parser.add_argument("--seconds", type=int, default=4, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each; medians are shown")
    parser.add_argument("--envoy", action="store_true", help="measure Envoy with the same policies, too")
    arguments = parser.parse_args()
    binary = os.environ.get("MAILLE_BIN") or shutil.which("maille") or sys.exit("MAILLE_BIN names no binary")
    processes = Processes()
    # Ended by somebody, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="maille-bench-") as name:
        folder = pathlib.Path(name)
        certificates(folder)
        try:
            run(arguments, binary, folder, processes)
        finally:
            processes.stop()


def run(arguments, binary, folder, processes):
    start_backend(folder, processes)
    starters = [("Maille", start_maille, binary)]
    if arguments.envoy and (envoy_binary := find_envoy(folder)):
        starters.append(("Envoy", start_envoy, envoy_binary))
    setups = []
    for product, start, program in starters:
        for count in (1, arguments.count):
            caller, other, callee, started = start(program, folder, processes, len(setups), all_policies(count))
            prove(f"{product} with {count}", caller, other, callee)
            if count > 1 and (denied := status_of(caller, path="/admin-2")) != "403":
                sys.exit(f"{product} does not enforce the many: /admin-2 got {denied}")
            processes.stop(started[2:])
            setups.append((product, count, caller, started[:2]))

    results = {(product, count): [] for product, count, _, _ in setups}
    for round in range(arguments.rounds):
        # In one order and then the other: whoever comes second finds a warmer machine.
        for product, count, caller, pair in setups[:: 1 if round % 2 == 0 else -1]:
            results[product, count].append(saturate(caller, pair, arguments.seconds))

    load = os.getloadavg()[0]
    print(f"medians of {arguments.rounds} turns of {arguments.seconds} s, 64 connections; {os.cpu_count()} CPUs, load {load:.1f}")
    print(f"{'':8}{'policies':>9}{'req/s':>11}{'(lowest .. highest)':>24}{'CPU-s per 100k':>16}{'callee RSS MB':>15}")
    for product, count, _, pair in setups:
        rates = [r["req/s"] for r in results[product, count]]
        cpu = statistics.median(r["CPU-s per 100k"] for r in results[product, count])
        between = f"({min(rates):.0f} .. {max(rates):.0f})"
        print(f"{product:8}{count:9}{statistics.median(rates):11.0f}{between:>24}{cpu:16.2f}{rss_mb(pair[1]):15.1f}")
    for product, _, _ in starters:
        one, many = results[product, 1], results[product, arguments.count]
        # Neighbours in time are compared with each other, not with the whole evening.
        ratio = lambda column: statistics.median(m[column] / o[column] for o, m in zip(one, many))
        print(f"{product}: {arguments.count} over 1: throughput {ratio('req/s'):.3f}, CPU per request {ratio('CPU-s per 100k'):.3f}")


if __name__ == "__main__":
    main()
