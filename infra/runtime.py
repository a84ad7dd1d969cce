"""A function as Lambda runs it: its program, and the Runtime API that it asks for work."""

import http.server
import json
import os
import queue
import subprocess
import threading
import time
import uuid


class Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        whole = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def answer(self, status, headers=(), body=b"", length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", len(body) if length is None else length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(handler, port=0):
    """An HTTP server on this machine, and its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


class Failed(Exception):
    """What a function says instead of an answer."""


class Function:
    """Some processes of one program. Each takes one event at a time."""

    def __init__(self, program, environment, processes=1, seconds=30, log=None):
        self.seconds, self.events, self.asked = seconds, queue.Queue(), {}
        function = self

        class Api(Quiet):
            def do_GET(self):
                if "/extension/" in self.path:
                    # It asked for no events.
                    threading.Event().wait()
                request, event = function.events.get()
                deadline = int((time.time() + function.seconds) * 1000)
                arn = "arn:aws:lambda:eu-west-1:123456789012:function:local"
                headers = [("Lambda-Runtime-Aws-Request-Id", request), ("Lambda-Runtime-Deadline-Ms", deadline)]
                self.answer(200, [*headers, ("Lambda-Runtime-Invoked-Function-Arn", arn), ("Content-Type", "application/json")], event)

            def do_POST(self):
                if self.path.endswith("/extension/register"):
                    self.body()
                    return self.answer(200, [("Lambda-Extension-Identifier", "local")], b"{}")
                *_, request, what = self.path.split("/")
                body = self.body()
                self.answer(202)
                if waiting := function.asked.pop(request, None):
                    waiting.put((what, body))

        api = serve(Api)
        told = {
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{api}",
            "AWS_LAMBDA_FUNCTION_NAME": "local",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
            "AWS_LAMBDA_LOG_GROUP_NAME": "local",
            "AWS_LAMBDA_LOG_STREAM_NAME": "local",
        }
        environment = {"PATH": os.environ["PATH"]} | told | environment
        self.begun = time.monotonic()
        start = lambda: subprocess.Popen([program], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: E731
        self.processes = [start() for _ in range(processes)]

    def invoke(self, event):
        request, answer = str(uuid.uuid4()), queue.Queue()
        self.asked[request] = answer
        self.events.put((request, json.dumps(event).encode()))
        end = time.monotonic() + self.seconds
        while True:
            try:
                what, body = answer.get(timeout=1)
                break
            except queue.Empty:
                ended = all(process.poll() is not None for process in self.processes)
                if ended or time.monotonic() > end:
                    self.asked.pop(request, None)
                    raise Failed("its processes have ended" if ended else "no answer in time") from None
        if what != "response":
            raise Failed(body.decode(errors="replace"))
        return json.loads(body)

    def stop(self):
        # As Lambda does, which tells a process that has an extension.
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def http_event(method, path, headers=(), query="", address="127.0.0.1"):
    """A request as an HTTP API passes it on (payload 2.0): paths are decoded."""
    about = {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": address, "userAgent": ""}
    context = {"accountId": "123456789012", "apiId": "local", "domainName": "localhost", "domainPrefix": "local", "requestId": str(uuid.uuid4())}
    context |= {"routeKey": "$default", "stage": "$default", "time": "", "timeEpoch": int(time.time() * 1000), "http": about}
    event = {"version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": query, "headers": dict(headers)}
    return event | {"requestContext": context, "isBase64Encoded": False}
