#!/usr/bin/env python3
"""A function for proving the Lambda stub: a runtime client that does as the event says."""
import base64, http.client, json, os, sys, time

API = os.environ["AWS_LAMBDA_RUNTIME_API"]


def call(method, path, body=None):
    connection = http.client.HTTPConnection(API)
    connection.request(method, "/2018-06-01/runtime/" + path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer, answer.read()


def meet():
    """Returns only while another function is here too."""
    place = os.environ["MEETING_PLACE"]
    open(os.path.join(place, str(os.getpid())), "w").close()
    deadline = time.monotonic() + 20
    while len(os.listdir(place)) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody came")
        time.sleep(0.01)


def handle(event, headers):
    if "Records" in event:
        [record] = event["Records"]
        print("record", json.dumps(record), flush=True)
        action = record["body"]
        if action == "partial":
            return {"batchItemFailures": [{"itemIdentifier": record["messageId"]}]}
        event = {"do": action}
    elif event.get("version") == "2.0":
        path = event["rawPath"]
        if path == "/bytes":
            body = base64.b64encode(bytes([0xEF, 0xBB, 0xBF, 0xFF])).decode()
            headers = {"content-type": "application/json", "content-length": "999", "www-authenticate": "Bearer x"}
            return {"statusCode": 200, "headers": headers, "cookies": ["a=1", "b=2"], "body": body,
                    "isBase64Encoded": True}
        if path == "/length":
            return {"statusCode": 200, "headers": {"content-length": "12345"}, "body": ""}
        if path == "/malformed":
            return {"statusCode": "many"}
        if path == "/headers":
            return {"statusCode": 200, "headers": {"location": "x" * 10_240}, "body": ""}
        if path in ("/fail", "/meet", "/slow", "/large"):
            event = {"do": path[1:]}
        else:
            return {"statusCode": 200, "body": json.dumps(event)}
    action = event["do"]
    if action == "fail":
        raise RuntimeError("as asked")
    if action == "exit":
        print("about to exit", flush=True)
        os._exit(3)
    if action == "hang":
        time.sleep(3600)
    if action == "slow":
        time.sleep(0.6)
        print("slept", flush=True)
    if action == "meet":
        meet()
    if action == "large":
        return "x" * (6 * 1024 * 1024 + 200)
    if action == "describe":
        return {"environment": dict(os.environ), "headers": {name.lower(): value for name, value in headers},
                "process": os.getpid(), "directory": os.getcwd()}
    return {"statusCode": 200, "body": ""}


if os.environ.get("FAIL_INIT"):
    call("POST", "init/error", json.dumps({"errorType": "Init.Refused", "errorMessage": "no configuration"}))
    sys.exit(1)

while True:
    answer, body = call("GET", "invocation/next")
    request = answer.headers["Lambda-Runtime-Aws-Request-Id"]
    try:
        result = handle(json.loads(body), answer.headers.items())
    except Exception as error:
        report = {"errorType": type(error).__name__, "errorMessage": str(error)}
        call("POST", f"invocation/{request}/error", json.dumps(report))
    else:
        call("POST", f"invocation/{request}/response", json.dumps(result))
