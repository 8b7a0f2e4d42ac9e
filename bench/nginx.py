"""nginx in both roles. Upstream it speaks HTTP/1.1 only; TCP needs Debian's libnginx-mod-stream."""

import os
import shutil

from lab import (
    BACKEND, BACKEND_H2, BACKEND_TCP, CALLEE, CALLEE_H2, CALLEE_TCP, CALLER, CALLER_H2, CALLER_TCP, OTHER, OTHER_H2, OTHER_TCP,
)

STREAM = "/usr/lib/nginx/modules/ngx_stream_module.so"


def _file(name, http, stream=""):
    module = f"load_module {STREAM};\n" if stream else ""
    stream = f"stream {{\n{stream}}}\n" if stream else ""
    return f"""{module}daemon off;
master_process off;
worker_processes 1;
pid {name}.pid;
error_log stderr crit;
events {{ worker_connections 8000; }}
http {{
  access_log off;
  keepalive_timeout 300s;
  keepalive_requests 100000000;
  client_body_temp_path temp-{name}; proxy_temp_path temp-{name}; fastcgi_temp_path temp-{name};
  uwsgi_temp_path temp-{name}; scgi_temp_path temp-{name};
{http}}}
{stream}"""


def client(folder, name, identity, listens):
    tls = (f"proxy_ssl_certificate {folder}/{identity}.pem; proxy_ssl_certificate_key {folder}/{identity}.key; "
           f"proxy_ssl_trusted_certificate {folder}/root.pem; proxy_ssl_verify off; proxy_ssl_protocols TLSv1.3; "
           "proxy_ssl_session_reuse off;")
    relay = "proxy_pass https://{}; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $host;"
    http = "".join(
        f"  upstream u{port} {{ server 127.0.0.1:{port}; keepalive 256; keepalive_requests 100000000; }}\n"
        f"  server {{ listen 127.0.0.1:{listen}{more}; {tls} location / {{ {relay.format(f'u{port}')} }} }}\n"
        for listen, port, more in ((listens[0], CALLEE, ""), (listens[1], CALLEE_H2, " http2")))
    stream = f"  server {{ listen 127.0.0.1:{listens[2]}; proxy_ssl on; {tls} proxy_pass 127.0.0.1:{CALLEE_TCP}; }}\n"
    return _file(name, http, stream if os.path.exists(STREAM) else "")


def server(folder, name):
    tls = (f"ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key; ssl_client_certificate {folder}/root.pem; "
           "ssl_verify_client on; ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off;")
    only = ("if ($ssl_client_s_dn != 'CN=client') { return 403; } if ($request_method != GET) { return 403; } ")
    http = "".join(
        f"  upstream u{port} {{ server 127.0.0.1:{port}; keepalive 256; keepalive_requests 100000000; }}\n"
        f"  server {{ listen 127.0.0.1:{listen} ssl; {tls} {only} location / {{ return 403; }} location /api/ {{ proxy_pass http://u{port}; "
        "proxy_http_version 1.1; proxy_set_header Connection ''; } }\n"
        for listen, port in ((CALLEE, BACKEND),))
    # HTTP/2 ends at the caller's side: the application behind it is the one of HTTP/1.1.
    http += (f"  server {{ listen 127.0.0.1:{CALLEE_H2} ssl; {tls} {only} location /api/ {{ proxy_pass http://u{BACKEND}; "
             "proxy_http_version 1.1; proxy_set_header Connection ''; } }\n")
    stream = f"  server {{ listen 127.0.0.1:{CALLEE_TCP} ssl; {tls} proxy_pass 127.0.0.1:{BACKEND_TCP}; }}\n"
    return _file(name, http, stream if os.path.exists(STREAM) else "")


def http2_backend(folder):
    """An application of HTTP/2 without TLS, for everybody."""
    return _file("backend", f"  server {{ listen 127.0.0.1:{BACKEND_H2} http2; location / {{ return 200 'hello, world'; }} }}\n")


def find():
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def start_file(binary, folder, processes, name, text):
    (folder / f"{name}.conf").write_text(text)
    return processes.start(binary, "-p", folder, "-c", folder / f"{name}.conf", cwd=folder)


def start(binary, folder, processes):
    """A pair, and the proxy of another caller."""
    configurations = {
        "ng-client": client(folder, "ng-client", "client", (CALLER, CALLER_H2, CALLER_TCP)),
        "ng-callee": server(folder, "ng-callee"),
        "ng-other": client(folder, "ng-other", "other", (OTHER, OTHER_H2, OTHER_TCP)),
    }
    return [start_file(binary, folder, processes, name, text) for name, text in configurations.items()]
