"""Calls a function by Tencent's SDK and reads the logs of the calls; prints what came of it as JSON.

logs_call.py HOST:PORT FUNCTION
"""

import json
import logging
import sys
import time

from tencentcloud.common import credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.scf.v20180416 import models, scf_client

ENDPOINT, FUNCTION = sys.argv[1:3]
EVENTS = {"good": {"k": 1}, "bad": {"fail": True}, "late": {"sleep_ms": 60000}}


def client():
    profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint=ENDPOINT, reqTimeout=60))
    return scf_client.ScfClient(credential.Credential("id", "secret"), "ap-guangzhou", profile)


def invoke(to, event):
    request = models.InvokeRequest()
    request.FunctionName, request.ClientContext = FUNCTION, json.dumps(event)
    return json.loads(to.Invoke(request).to_json_string())["Result"]


def logs(to, code=None, **parameters):
    request = models.GetFunctionLogsRequest()
    request.FunctionName = FUNCTION
    for name, value in parameters.items():
        setattr(request, name, value)
    if code is not None:
        request.Filter = models.LogFilter()
        request.Filter.RetCode = code
    try:
        return json.loads(to.GetFunctionLogs(request).to_json_string())
    except TencentCloudSDKException as error:
        return {"error": error.get_code(), "message": error.get_message()}


def main():
    # The SDK logs what it also raises.
    logging.disable(logging.CRITICAL)
    to = client()
    outcomes = {case: invoke(to, event) for case, event in EVENTS.items()}
    until = time.monotonic() + 20
    # A log is written beside the calls.
    while logs(to, "not0").get("TotalCount") != 2 and time.monotonic() < until:
        time.sleep(0.1)
    asked = {
        "all": logs(to),
        "good": logs(to, FunctionRequestId=outcomes["good"]["FunctionRequestId"]),
        "not0": logs(to, "not0", Order="asc"),
        "is0": logs(to, "is0"),
        "late": logs(to, "TimeLimitExceeded"),
        "page": logs(to, Order="asc", Offset=1, Limit=1),
        "before": logs(to, StartTime="2020-01-01 00:00:00", EndTime="2020-01-01 12:00:00"),
        "slowest": logs(to, OrderBy="duration", Limit=1),
        "too_long": logs(to, StartTime="2020-01-01 00:00:00", EndTime="2020-01-03 00:00:00"),
        "too_many": logs(to, Limit=10001),
    }
    print(json.dumps({"outcomes": outcomes, "logs": asked}))


main()
