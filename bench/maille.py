"""Maille's pair: files of facts for `maille proxy --static` (docs/static.md)."""

import json
import os

from lab import (
    BACKEND, BACKEND_H2, BACKEND_TCP, CALLEE, CALLEE_H2, CALLEE_TCP, CALLER, CALLER_H2, CALLER_TCP, HOST, ID, OTHER, OTHER_H2,
    OTHER_TCP,
)


def command(binary, file):
    """The binary's role, or the proxy crate's example that is nothing else."""
    return [binary, file] if os.path.basename(binary) == "sidecar" else [binary, "proxy", "--static", file]


def caller(name, listen, callee=CALLEE, multiplexes=True):
    """A caller's sidecar; `listen` and `callee` are one port (HTTP), or three (HTTP/1.1, HTTP/2, TCP)."""
    listens = listen if isinstance(listen, tuple) else (listen,)
    callees = callee if isinstance(callee, tuple) else (callee,)
    numbers = list(zip((80, 82, 81), ("HTTP", "HTTP2", "TCP"), listens, callees))
    workload = {"namespace": "bench", "workloadName": name,
                "identity": {"trustDomain": "cluster.local", "namespace": "bench", "serviceAccount": name}}
    service = {
        "namespace": "bench", "name": "backend", "hostname": HOST, "addresses": ["10.96.0.77"],
        "ports": [{"number": number, "protocol": protocol} for number, protocol, _, _ in numbers],
        "subjectAltNames": [ID + "server"],
        "endpoints": [{"address": "127.0.0.1", "workload": {"meshed": True, "multiplexes": multiplexes},
                       "ports": [{"servicePort": number, "targetPort": target, "tls": "ISTIO_MUTUAL"}
                                 for number, _, _, target in numbers]}],
    }
    return {
        "workers": 1, "identity": {"certificate": f"{name}.pem", "key": f"{name}.key"},
        "trust": {"cluster.local": "root.pem"}, "inbound": {"workload": workload, "mode": "STRICT"},
        "destinations": {HOST: {"service": service}, "10.96.0.77": {"service": service}},
        "listeners": [{"direction": "outbound", "listen": f"127.0.0.1:{port}", "standsFor": f"{HOST}:{number}"}
                      for number, _, port, _ in numbers],
    }


def callee(listen=CALLEE, authorizations=None):
    """The callee's sidecar, with one policy (principal, method and path prefix; TCP: principal) unless there are others."""
    listens = listen if isinstance(listen, tuple) else (listen,)
    ports = list(zip((BACKEND, BACKEND_H2, BACKEND_TCP), ("HTTP", "HTTP2", "TCP"), listens))
    workload = {"namespace": "bench", "workloadName": "backend", "addresses": ["127.0.0.1"],
                "identity": {"trustDomain": "cluster.local", "namespace": "bench", "serviceAccount": "server"}}
    client = [{"source": {"principals": ["cluster.local/ns/bench/sa/client"]}}]
    read = {"from": client, "to": [{"operation": {"methods": ["GET"], "paths": ["/api/*"]}}]}
    rules = [read] + ([{"from": client, "to": [{"operation": {"ports": [str(BACKEND_TCP)]}}]}] if len(ports) > 1 else [])
    return {
        "workers": 1, "identity": {"certificate": "server.pem", "key": "server.key"},
        "trust": {"cluster.local": "root.pem"},
        "inbound": {"workload": workload, "mode": "STRICT",
                    "ports": [{"port": port, "protocol": protocol} for port, protocol, _ in ports]},
        "authorizations": authorizations
        or [{"namespace": "bench", "name": "only", "spec": {"action": "ALLOW", "rules": rules}}],
        "listeners": [{"direction": "inbound", "listen": f"127.0.0.1:{listening}", "standsFor": f"127.0.0.1:{port}"}
                      for port, _, listening in ports],
    }


def start(binary, folder, processes, multiplexes=True):
    """A pair, and the sidecar of another caller."""
    callees = (CALLEE, CALLEE_H2, CALLEE_TCP)
    files = {
        "client": caller("client", (CALLER, CALLER_H2, CALLER_TCP), callees, multiplexes),
        "callee": callee(callees),
        "other": caller("other", (OTHER, OTHER_H2, OTHER_TCP), callees, multiplexes),
    }
    for file, facts in files.items():
        (folder / f"{file}.yaml").write_text(json.dumps(facts))
    return [processes.start(*command(binary, f"{file}.yaml"), cwd=folder) for file in files]
