"""haproxy in both roles. Of the client's certificate it knows the common name, not the URI."""

import shutil

from lab import (
    BACKEND, BACKEND_H2, BACKEND_TCP, CALLEE, CALLEE_H2, CALLEE_TCP, CALLER, CALLER_H2, CALLER_TCP, OTHER, OTHER_H2, OTHER_TCP,
)

HEAD = """global
  nbthread 1
  maxconn 5000
  tune.ssl.cachesize 0
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  ssl-default-server-options ssl-min-ver TLSv1.3 no-tls-tickets
defaults
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  http-reuse always
"""


def _relay(name, mode, bind, server, rules=""):
    return f"""
frontend {name}
  mode {mode}
  bind 127.0.0.1:{bind}
{rules}  default_backend {name}
backend {name}
  mode {mode}
  server one 127.0.0.1:{server}
"""


def client(identity, listens):
    tls = f"ssl crt {identity}.both.pem ca-file root.pem verify required"
    return HEAD + (
        _relay("one", "http", listens[0], f"{CALLEE} {tls} alpn http/1.1")
        + _relay("two", "http", f"{listens[1]} proto h2", f"{CALLEE_H2} {tls} alpn h2")
        + _relay("bytes", "tcp", listens[2], f"{CALLEE_TCP} {tls}")
    )


def server():
    tls = "ssl crt server.both.pem ca-file root.pem verify required"
    only = "  http-request deny unless { ssl_c_s_dn(CN) -m str client } METH_GET { path_beg /api/ }\n"
    caller = "  tcp-request content reject unless { ssl_c_s_dn(CN) -m str client }\n"
    return HEAD + (
        _relay("one", "http", f"{CALLEE} {tls} alpn http/1.1", BACKEND, only)
        + _relay("two", "http", f"{CALLEE_H2} {tls} alpn h2", f"{BACKEND_H2} proto h2", only)
        + _relay("bytes", "tcp", f"{CALLEE_TCP} {tls}", BACKEND_TCP, caller)
    )


def find():
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def start(binary, folder, processes):
    """A pair, and the proxy of another caller."""
    configurations = {
        "ha-client": client("client", (CALLER, CALLER_H2, CALLER_TCP)),
        "ha-callee": server(),
        "ha-other": client("other", (OTHER, OTHER_H2, OTHER_TCP)),
    }
    for file, text in configurations.items():
        (folder / f"{file}.cfg").write_text(text)
    return [processes.start(binary, "-db", "-f", f"{file}.cfg", cwd=folder) for file in configurations]
