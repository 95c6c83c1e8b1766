"""The test client for gRPC in Python, which is gRPC's C++ core. What it does is said in the README of the folder above."""

import collections
import json
import sys

import grpc


def call(channel, calls):
    """Makes calls and counts what comes of them."""
    ask = channel.unary_unary("/fairlead.test.Backend/Name")
    answers, errors = collections.Counter(), collections.Counter()
    for _ in range(calls):
        try:
            answers[ask(b"", timeout=10).decode()] += 1
        except grpc.RpcError as e:
            errors[f"{e.code().name}: {e.details()}"] += 1
    return {"answers": answers, "errors": errors}


channels = {}
for order in sys.stdin:
    calls, target = order.split()
    if target not in channels:
        channels[target] = grpc.insecure_channel(target)
    print(json.dumps(call(channels[target], int(calls))), flush=True)
