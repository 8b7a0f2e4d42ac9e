"""Envoy's configuration for the two-sidecar set-up: plain in, mutual TLS between, one L7 policy."""


def _tls(kind: str, certs: str, name: str, spiffe: str, server: bool) -> dict:
    context = {
        "@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["http/1.1"],
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
    return {"name": "tls", "typed_config": context}


def _manager(prefix: str, cluster: str, filters: list) -> dict:
    return {
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": prefix,
            "codec_type": "AUTO",
            "generate_request_id": False,
            "route_config": {
                "virtual_hosts": [
                    {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
                ]
            },
            "http_filters": filters
            + [
                {
                    "name": "router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }
            ],
        },
    }


def _address(port: int) -> dict:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, port: int, socket: dict | None) -> dict:
    cluster = {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
    }
    if socket:
        cluster["transport_socket"] = socket
    return cluster


def client(listen: int, upstream: int, admin: int, certs: str, server_id: str) -> dict:
    """The caller's sidecar."""
    socket = _tls("Upstream", certs, "client", server_id, server=False)
    return {
        "admin": {"address": _address(admin)},
        "static_resources": {
            "listeners": [
                {"name": "out", "address": _address(listen), "filter_chains": [{"filters": [_manager("out", "peer", [])]}]}
            ],
            "clusters": [_cluster("peer", upstream, socket)],
        },
    }


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


def rbac(action: str, policies: dict) -> dict:
    """One RBAC filter."""
    return {
        "name": f"rbac-{action.lower()}",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": action, "policies": policies},
        },
    }


def server(
    listen: int, backend: int, admin: int, certs: str, trust: str, principal: str, filters: list | None = None
) -> dict:
    """The callee's sidecar, with one policy (principal, method and path prefix) unless there are other filters."""
    filters = filters or [rbac("ALLOW", {"only": rule(principal, "GET", "/api/")})]
    chain = {
        "filters": [_manager("in", "app", filters)],
        "transport_socket": _tls("Downstream", certs, "server", trust, server=True),
    }
    return {
        "admin": {"address": _address(admin)},
        "static_resources": {
            "listeners": [{"name": "in", "address": _address(listen), "filter_chains": [chain]}],
            "clusters": [_cluster("app", backend, None)],
        },
    }
