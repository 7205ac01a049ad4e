"""Calls a function through one of the vendors' official SDKs and prints what each call came to, as JSON.

call.py SDK HOST:PORT FUNCTION KEY_ID KEY_SECRET LARGE

Only the endpoint differs from a call of the cloud. LARGE is the number of bytes of an event that is too
large. Calls are made in the order of `CASES`; the one that runs into the time limit is the last.
"""

import importlib
import json
import logging
import sys
import time
from io import BytesIO

SDK, ENDPOINT, FUNCTION, KEY_ID, KEY_SECRET, LARGE = sys.argv[1:7]
CASES = ["success", "function_error", "unknown_function", "too_large", "asynchronous", "timeout"]
SERVICE = "default"


def event(case):
    """An event in JSON, as a text."""
    if case == "too_large":
        return json.dumps({"x": "x" * int(LARGE)})
    return json.dumps({"function_error": {"fail": True}, "timeout": {"sleep_ms": 60000}}.get(case, {"case": case}))


def function(case):
    return "no-such" if case == "unknown_function" else FUNCTION


class Fc2:
    """aliyun-fc2, API 2016-08-15."""

    def __init__(self):
        import fc2

        self.errors = fc2.FcError
        self.client = fc2.Client(endpoint=f"http://{ENDPOINT}", accessKeyID=KEY_ID, accessKeySecret=KEY_SECRET)

    def call(self, case):
        headers = {"x-fc-log-type": "Tail"}
        if case == "asynchronous":
            headers = {"x-fc-invocation-type": "Async"}
        try:
            answer = self.client.invoke_function(SERVICE, function(case), payload=event(case), headers=headers)
        except self.errors as error:
            return {"error": error.err_code, "message": error.message, "status": error.status_code}
        return {"body": answer.data.decode(), "headers": dict(answer.headers)}

    def http(self):
        answer = self.client.do_http_request("GET", SERVICE, FUNCTION, "/request", params={"b": "2 3", "a": "1"})
        return {"body": answer.text, "status": answer.status_code}


class Fc:
    """aliyun-fc, the first one, API 2016-08-15."""

    def __init__(self):
        import fc

        self.errors = fc.FcError
        self.client = fc.Client(endpoint=f"http://{ENDPOINT}", accessKeyID=KEY_ID, accessKeySecret=KEY_SECRET)

    def call(self, case):
        invoke = self.client.async_invoke_function if case == "asynchronous" else self.client.invoke_function
        try:
            answer = invoke(SERVICE, function(case), payload=event(case), logType="Tail")
        except self.errors as error:
            return {"error": error.err_code, "message": error.message, "status": error.status_code}
        return {"body": answer.decode()}


class Whole(BytesIO):
    """Read at once. The SDK asks for 1 KiB, and copies all that it has got each time: hours for 32 MiB."""

    def read(self, _size=-1):
        return super().read()


class Tea:
    """The generated SDKs of Alibaba: all have the same shape."""

    # Its module, and what comes before the function's name.
    package, service = "", []

    def __init__(self):
        from alibabacloud_tea_openapi.models import Config
        from alibabacloud_tea_util.models import RuntimeOptions

        client = importlib.import_module(f"{self.package}.client").Client
        self.models = importlib.import_module(f"{self.package}.models")
        self.options = RuntimeOptions(read_timeout=60000, autoretry=False)
        self.client = client(
            Config(access_key_id=KEY_ID, access_key_secret=KEY_SECRET, endpoint=ENDPOINT, protocol="http")
        )

    def call(self, case):
        from Tea.exceptions import TeaException

        kind = "Async" if case == "asynchronous" else "Sync"
        request = self.models.InvokeFunctionRequest(body=self.body(event(case).encode()), qualifier="LATEST")
        headers = self.models.InvokeFunctionHeaders(x_fc_invocation_type=kind, x_fc_log_type="Tail")
        target = [*self.service, function(case)]
        try:
            answer = self.client.invoke_function_with_options(*target, request, headers, self.options)
        except TeaException as error:
            status = (error.data or {}).get("statusCode")
            return {"error": error.code, "message": error.message, "status": status}
        body = answer.body
        body = body.read() if hasattr(body, "read") else body
        return {"body": (body or b"").decode(), "headers": dict(answer.headers), "status": answer.status_code}


class Fc20230330(Tea):
    """alibabacloud-fc20230330."""

    package = "alibabacloud_fc20230330"
    body = Whole


class Open20210406(Tea):
    """alibabacloud-fc-open20210406."""

    package, service = "alibabacloud_fc_open20210406", [SERVICE]
    body = bytes


class Scf:
    """tencentcloud-sdk-python-scf: `Invoke`, and `InvokeFunction` for the case of that name."""

    def __init__(self):
        from tencentcloud.common import credential
        from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
        from tencentcloud.common.profile.client_profile import ClientProfile
        from tencentcloud.common.profile.http_profile import HttpProfile
        from tencentcloud.scf.v20180416 import models, scf_client

        self.models, self.errors = models, TencentCloudSDKException
        profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint=ENDPOINT, reqTimeout=60))
        self.client = scf_client.ScfClient(credential.Credential(KEY_ID, KEY_SECRET), "ap-guangzhou", profile)

    def whole(self, call):
        try:
            answer = call()
        except self.errors as error:
            return {"error": error.get_code(), "message": error.get_message()}
        return json.loads(answer.to_json_string())

    def answered(self, call):
        answer = self.whole(call)
        return answer if "error" in answer else answer["Result"]

    def ask(self, action, **parameters):
        request = getattr(self.models, action + "Request")()
        for name, value in parameters.items():
            setattr(request, name, value)
        return self.whole(lambda: getattr(self.client, action)(request))

    def ended(self, request):
        """The status of an asynchronous event when it runs no more."""
        until = time.monotonic() + 20
        while True:
            answer = self.ask("GetAsyncEventStatus", InvokeRequestId=request)
            if answer.get("Result", {}).get("Status") != "RUNNING" or time.monotonic() > until:
                return answer
            time.sleep(0.05)

    def after(self, outcomes):
        """What has become of the calls, and the end of one."""
        later = self.models.InvokeRequest()
        later.FunctionName, later.ClientContext, later.InvocationType = FUNCTION, event("timeout"), "Event"
        doomed = self.answered(lambda: self.client.Invoke(later))["FunctionRequestId"]
        status = {
            "request": self.ask(
                "GetRequestStatus",
                FunctionName=FUNCTION,
                FunctionRequestId=outcomes["success"]["FunctionRequestId"],
            ),
            "asynchronous": self.ended(outcomes["asynchronous"]["FunctionRequestId"]),
            "running": self.ask("GetAsyncEventStatus", InvokeRequestId=doomed),
            "terminate": self.ask("TerminateAsyncEvent", FunctionName=FUNCTION, InvokeRequestId=doomed),
            "terminated": self.ended(doomed),
            "again": self.ask("TerminateAsyncEvent", FunctionName=FUNCTION, InvokeRequestId=doomed),
            "unknown": self.ask("GetAsyncEventStatus", InvokeRequestId="no-such"),
            "list": self.ask("ListAsyncEvents", FunctionName=FUNCTION, Order="ASC"),
            "aborted": self.ask("ListAsyncEvents", FunctionName=FUNCTION, Status=["ABORTED"]),
            "logs": self.ask("GetFunctionLogs", FunctionName=FUNCTION),
        }
        return status | {"doomed": doomed}

    def call(self, case):
        request = self.models.InvokeRequest()
        request.FunctionName, request.ClientContext, request.LogType = function(case), event(case), "Tail"
        request.InvocationType = "Event" if case == "asynchronous" else "RequestResponse"
        return self.answered(lambda: self.client.Invoke(request))

    def http(self):
        request = self.models.InvokeFunctionRequest()
        request.FunctionName, request.Event = FUNCTION, event("invoke_function")
        return self.answered(lambda: self.client.InvokeFunction(request))


def main():
    # The SDKs log what they also raise.
    logging.disable(logging.CRITICAL)
    sdk = {"fc": Fc, "fc2": Fc2, "fc20230330": Fc20230330, "open20210406": Open20210406, "scf": Scf, "all": Scf, "intl": Scf}[SDK]()
    outcomes = {}
    if hasattr(sdk, "http"):
        outcomes["other"] = sdk.http()
    for case in CASES:
        outcomes[case] = sdk.call(case)
    if hasattr(sdk, "after"):
        outcomes["status"] = sdk.after(outcomes)
    print(json.dumps(outcomes))


main()
