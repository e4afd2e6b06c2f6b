#!/usr/bin/env python3
"""Waits until a server answers 200, or fails when its process ends or a minute passes.

usage: wait_ready.py URL PID
"""
import os
import sys
import time
import urllib.error
import urllib.request

SECONDS_MAX = 60
url, pid = sys.argv[1], int(sys.argv[2])
end = time.monotonic() + SECONDS_MAX
last = "no answer"
while time.monotonic() < end:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                sys.exit(0)
            last = f"status {answer.status}"
    except (urllib.error.URLError, OSError) as error:
        last = str(error)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        sys.exit(f"the server ended before it was ready ({last})")
    time.sleep(0.05)
sys.exit(f"not ready within {SECONDS_MAX} s: {last}")
