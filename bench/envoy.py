"""Envoy's configuration for the two-sidecar set-up: plain in, mutual TLS between, one L7 policy."""

import json

from lab import (
    ADMIN, BACKEND, BACKEND_H2, BACKEND_TCP, CALLEE, CALLEE_H2, CALLEE_TCP, CALLER, CALLER_H2, CALLER_TCP, ID, OTHER, OTHER_H2,
    OTHER_TCP,
)

TYPES = "type.googleapis.com/envoy.extensions"


def _tls(kind: str, certs: str, name: str, spiffe: str, server: bool, alpn: str | None = "http/1.1") -> dict:
    context = {
        "@type": f"{TYPES}.transport_sockets.tls.v3.{kind}TlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": [alpn] if alpn else [],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": f"{certs}/{name}.pem"},
                    "private_key": {"filename": f"{certs}/{name}.key"},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": f"{certs}/root.pem"},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix" if server else "exact": spiffe}}],
            },
        },
    }
    if server:
        context["require_client_certificate"] = True
        context["disable_stateless_session_resumption"] = True
        context["disable_stateful_session_resumption"] = True
    return {"name": "tls", "typed_config": context}


def _manager(prefix: str, cluster: str, filters: list) -> dict:
    return {
        "name": "http",
        "typed_config": {
            "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": prefix,
            "codec_type": "AUTO",
            "generate_request_id": False,
            "route_config": {
                "virtual_hosts": [
                    {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
                ]
            },
            "http_filters": filters
            + [{"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}],
        },
    }


def _bytes(prefix: str, cluster: str) -> dict:
    config = {"@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": prefix, "cluster": cluster}
    return {"name": "tcp", "typed_config": config}


def _address(port: int) -> dict:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, port: int, socket: dict | None, is_http2: bool = False) -> dict:
    endless = 1_000_000
    thresholds = {"max_connections": endless, "max_pending_requests": endless, "max_requests": endless}
    cluster = {
        "name": name,
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
    }
    if socket:
        cluster["transport_socket"] = socket
    if is_http2:
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


KINDS = ("one", "two", "bytes")
ALPN = {"one": "http/1.1", "two": "h2", "bytes": None}


def client(listen, upstream, admin: int, certs: str, server_id: str, name: str = "client") -> dict:
    """The caller's sidecar; one port (HTTP/1.1), or three (HTTP/1.1, HTTP/2, TCP)."""
    listens = listen if isinstance(listen, tuple) else (listen,)
    upstreams = upstream if isinstance(upstream, tuple) else (upstream,)
    listeners, clusters = [], []
    for kind, listening, port in zip(KINDS, listens, upstreams):
        last = _bytes(kind, kind) if kind == "bytes" else _manager(kind, kind, [])
        listeners.append({"name": kind, "address": _address(listening), "filter_chains": [{"filters": [last]}]})
        socket = _tls("Upstream", certs, name, server_id, server=False, alpn=ALPN[kind])
        clusters.append(_cluster(kind, port, socket, is_http2=kind == "two"))
    return {"admin": {"address": _address(admin)}, "static_resources": {"listeners": listeners, "clusters": clusters}}


def rule(principal: str | None, method: str | None = None, prefix: str | None = None, header: tuple | None = None) -> dict:
    """One RBAC policy: all that is given must fit."""
    permissions = []
    if method:
        permissions.append({"header": {"name": ":method", "string_match": {"exact": method}}})
    if prefix:
        permissions.append({"url_path": {"path": {"prefix": prefix}}})
    ids = [{"authenticated": {"principal_name": {"exact": principal}}} if principal else {"any": True}]
    if header:
        ids.append({"header": {"name": header[0], "string_match": {"exact": header[1]}}})
    return {
        "permissions": [{"and_rules": {"rules": permissions}}] if permissions else [{"any": True}],
        "principals": [{"and_ids": {"ids": ids}}],
    }


def rbac(action: str, policies: dict, kind: str = "http") -> dict:
    """One RBAC filter."""
    config = {"@type": f"{TYPES}.filters.{kind}.rbac.v3.RBAC", "rules": {"action": action, "policies": policies}}
    if kind == "network":
        config["stat_prefix"] = "rbac"
    return {"name": f"rbac-{action.lower()}", "typed_config": config}


def server(listen, backend, admin: int, certs: str, trust: str, principal: str, filters: list | None = None) -> dict:
    """The callee's sidecar, with one policy (principal, method and path prefix; TCP: principal) unless there are other filters."""
    listens = listen if isinstance(listen, tuple) else (listen,)
    backends = backend if isinstance(backend, tuple) else (backend,)
    filters = filters or [rbac("ALLOW", {"only": rule(principal, "GET", "/api/")})]
    listeners, clusters = [], []
    for kind, listening, port in zip(KINDS, listens, backends):
        chain = [rbac("ALLOW", {"only": rule(principal)}, "network"), _bytes(kind, kind)]
        chain = chain if kind == "bytes" else [_manager(kind, kind, filters)]
        socket = _tls("Downstream", certs, "server", trust, server=True, alpn=ALPN[kind])
        listeners.append({"name": kind, "address": _address(listening),
                          "filter_chains": [{"filters": chain, "transport_socket": socket}]})
        clusters.append(_cluster(kind, port, None, is_http2=kind == "two"))
    return {"admin": {"address": _address(admin)}, "static_resources": {"listeners": listeners, "clusters": clusters}}


def start(binary, folder, processes):
    """A pair, and the sidecar of another caller."""
    callees, certs = (CALLEE, CALLEE_H2, CALLEE_TCP), str(folder)
    configurations = {
        "e-client": client((CALLER, CALLER_H2, CALLER_TCP), callees, ADMIN, certs, ID + "server"),
        "e-callee": server(callees, (BACKEND, BACKEND_H2, BACKEND_TCP), ADMIN + 1, certs, "spiffe://cluster.local/", ID + "client"),
        "e-other": client((OTHER, OTHER_H2, OTHER_TCP), callees, ADMIN + 2, certs, ID + "server", name="other"),
    }
    return start_files(binary, folder, processes, configurations)


def start_files(binary, folder, processes, configurations):
    """One process for each configuration, by its file's name. Without hot restart, which would meet what earlier runs left."""
    started = []
    for file, configuration in configurations.items():
        (folder / f"{file}.json").write_text(json.dumps(configuration))
        started.append(processes.start(binary, "-c", f"{file}.json", "--concurrency", "1", "--log-level", "off",
                                       "--disable-hot-restart", cwd=folder))
    return started
