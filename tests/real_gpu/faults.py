#!/usr/bin/env python3
"""Shows that faults of applications are counted and take no GPU out of service.
Needs root and a real GPU, and no kubelet.

    faults.py PLUGIN FAULTS [-- PLUGIN-FLAG ...]

PLUGIN is the gpu-device-plugin binary, FAULTS the program of faults.c. The plugin
runs in a temporary folder. Each fault is made once, then all of them; after each
the metrics say which XIDs came and how the devices are. At the end the plugin is
left alone for a while, which tells what its polls cost. Exit code 0: XIDs 13 and
31 were counted, and no device was ever unhealthy.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

FAULTS = ("address", "alignment", "shared", "trap")
# Longer than a poll, which is every 5 s.
AFTER_A_FAULT = 7
AT_REST = 30


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(plugin, folder, flags):
    """The plugin's process, and where it is seen from outside."""
    folders = {"--device-plugin-dir": "kubelet", "--state-dir": "state", "--cdi-root": "cdi"}
    arguments = [plugin]
    for flag, name in folders.items():
        (folder / name).mkdir()
        arguments += [flag, str(folder / name)]
    address = f"127.0.0.1:{free_port()}"
    arguments += ["--http-listen", address, *flags]
    return subprocess.Popen(arguments, stderr=subprocess.STDOUT), f"http://{address}"


def samples(url, name):
    """A metric's samples, by their labels; none while nobody answers."""
    try:
        text = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
    except OSError:
        return {}
    found = re.findall(rf"^gpu_device_plugin_{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def xids(url):
    """How many of each XID, of all GPUs together."""
    counts = {}
    for labels, value in samples(url, "xids_total").items():
        xid = int(re.search(r'xid="(\d+)"', labels).group(1))
        counts[xid] = counts.get(xid, 0) + int(value)
    return counts


def devices(url):
    """How many devices of each health."""
    counts = {}
    for labels, value in samples(url, "devices").items():
        health = re.search(r'health="(\w+)"', labels).group(1).lower()
        counts[health] = counts.get(health, 0) + int(value)
    return counts


def until(what, holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"FAIL {what}: not within {seconds} s")
        time.sleep(0.1)
    print(f"ok   {what}", flush=True)


class Watch:
    """What the devices were from one moment to another."""

    def __init__(self, url):
        self.url, self.worst = url, 0

    def pass_time(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.worst = max(self.worst, devices(self.url).get("unhealthy", 0))
            time.sleep(0.2)


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_faults(faults, url, watch):
    for name in FAULTS:
        before = xids(url)
        done = subprocess.run([faults, name], capture_output=True, text=True)
        print(done.stdout.strip(), done.stderr.strip(), f"exit code {done.returncode}", flush=True)
        watch.pass_time(AFTER_A_FAULT)
        came = {xid: count - before.get(xid, 0) for xid, count in xids(url).items()}
        came = {xid: count for xid, count in came.items() if count}
        print(f"     {name}: XIDs {came}, devices {devices(url)}", flush=True)


def main():
    arguments, flags = sys.argv[1:], []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, flags = arguments[:place], arguments[place + 1:]
    if len(arguments) != 2:
        sys.exit(__doc__)
    plugin, faults = arguments
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(plugin, pathlib.Path(folder), flags)
        try:
            until("every device is healthy", lambda: devices(url).get("healthy", 0) > 0
                  and not devices(url).get("unhealthy", 0))
            watch = Watch(url)
            # Subscribed to events a moment after the first list.
            watch.pass_time(2)
            make_faults(faults, url, watch)
            began = cpu_seconds(process.pid)
            time.sleep(AT_REST)
            used = cpu_seconds(process.pid) - began
            print(f"     at rest: {used * 1000:.0f} ms of CPU in {AT_REST} s", flush=True)
            watch.pass_time(0.3)
            print(f"     errors of NVML: {samples(url, 'nvml_errors_total')}")
            counted = xids(url)
            well = watch.worst == 0 and devices(url).get("healthy", 0) > 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
    both = 13 in counted and 31 in counted
    print(f"{'ok  ' if both else 'FAIL'} XIDs counted: {counted}")
    print(f"{'ok  ' if well else 'FAIL'} unhealthy devices at any time: {watch.worst}")
    sys.exit(0 if both and well else 1)


if __name__ == "__main__":
    main()
