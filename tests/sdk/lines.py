"""Commands come as JSON lines on stdin, `{"call": …, "args": …}`; each gets one JSON line on stdout, `{"ok": …}` or
`{"error": {"kind", "status", "message"}}`."""

import json
import re
import sys


def snake(name):
    """`sessionId` as Python writes it."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: "_" + found[1].lower(), name)


def camel(value):
    """What an SDK returned, with the names of the wire."""
    if isinstance(value, dict):
        return {re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), key): camel(item) for key, item in value.items()}
    return [camel(item) for item in value] if isinstance(value, list) else value


def serve(calls):
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"ok": calls[command["call"]](**command.get("args", {}))}
        except Exception as error:
            response = getattr(error, "response", None)
            status = None if response is None else response.status_code
            answer = {"error": {"kind": type(error).__name__, "status": status, "message": str(error)}}
        print(json.dumps(answer, default=str), flush=True)
