"""An external authorizer of Envoy's own protocol, made of grpcio and Envoy's generated messages.

Takes a JSON file {path: CheckResponse in protobuf's JSON}; "tcp" stands for connections, "abort:<path>" for a gRPC
status in place of an answer. Prints its port, and then every CheckRequest as one line of JSON.
"""

import json
import sys
import threading
from concurrent import futures

import grpc
from envoy.service.auth.v3 import external_auth_pb2 as auth
from envoy.service.auth.v3 import external_auth_pb2_grpc as service
from google.protobuf import json_format


PRINTING = threading.Lock()


class Authorizer(service.AuthorizationServicer):
    def __init__(self, answers):
        self.answers = answers

    def Check(self, request, context):
        shown = json_format.MessageToDict(request)
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        with PRINTING:
            print(json.dumps({"check": shown, "metadata": metadata}), flush=True)
        path = request.attributes.request.http.path or "tcp"
        status = self.answers.get(f"abort:{path}")
        if status is not None:
            context.abort(grpc.StatusCode[status], "as ordered")
        answer = self.answers.get(path, {"status": {"code": 7}})
        return json_format.ParseDict(answer, auth.CheckResponse())


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        answers = json.load(file)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    service.add_AuthorizationServicer_to_server(Authorizer(answers), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    # The test ends it by closing its input.
    sys.stdin.read()
    server.stop(0)


main()
