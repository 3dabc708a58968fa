#!/usr/bin/env python3
"""Applies what Allocate answers to a container, with runc, as a kubelet and its
runtime would, and runs a program in it. Needs root and a real GPU.

    container.py PLUGIN PROGRAM [ARGUMENT ...] [-- PLUGIN-FLAG ...]
    container.py PLUGIN --image ROOT PROGRAM [ARGUMENT ...] [-- PLUGIN-FLAG ...]

PLUGIN is the gpu-device-plugin binary; PROGRAM a dynamically linked program
(cuda_probe.c, compiled with `cc cuda_probe.c -o cuda_probe -ldl`). The image is
made here: the program, the C library that it needs, and nothing else. Or it is a
root file system, in which case PROGRAM is looked for there.

Where PLUGIN-FLAG has the plugin make a driver volume, it has to have run before:
`devices` tells what is answered, and makes nothing.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile


def allocate(plugin, flags):
    """The first device's ID and answer, by `devices --output json`."""
    command = [plugin, "devices", "--output", "json", *flags]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    device = next(device for device in report["devices"] if "allocate" in device)
    return device["id"], device["allocate"]


def make_rootfs(rootfs, program):
    """The program and what ldd says it needs, at the same paths."""
    for folder in ("proc", "dev", "tmp", "usr/bin"):
        (rootfs / folder).mkdir(parents=True)
    shutil.copy(program, rootfs / "program")
    needed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    # What the driver's libraries need of the C library, beside the program's own.
    libc = pathlib.Path(re.search(r"(/\S+libc\.so\.6)", needed).group(1)).parent
    files = set(re.findall(r"(/\S+)", needed))
    files |= {str(libc / f"lib{name}") for name in ("m.so.6", "dl.so.2", "pthread.so.0", "rt.so.1")}
    for file in files:
        target = rootfs / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def device(spec):
    """A device node of the container, and the cgroup rule that opens it."""
    stat = os.stat(spec["host_path"])
    major, minor = os.major(stat.st_rdev), os.minor(stat.st_rdev)
    node = {"path": spec["container_path"], "type": "c", "major": major, "minor": minor,
            "fileMode": 0o666, "uid": 0, "gid": 0}
    rule = {"allow": True, "type": "c", "major": major, "minor": minor, "access": spec["permissions"]}
    return node, rule


def runtime_config(answer, arguments):
    """An OCI configuration with the answer applied, and no variable but PATH and HOME."""
    devices = [device(spec) for spec in answer["devices"]]
    mounts = [{"destination": mount["container_path"], "source": mount["host_path"], "type": "bind",
               "options": ["rbind", "rprivate", mount["permissions"]]} for mount in answer["mounts"]]
    namespaces = [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")]
    capabilities = ["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]
    return {
        "ociVersion": "1.0.2",
        "process": {"terminal": False, "cwd": "/", "args": arguments,
                    "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin", "HOME=/tmp"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": True,
                    "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                   {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755"]},
                   {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                    "options": ["nosuid", "nodev", "mode=1777"]},
                   {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}, *mounts],
        "linux": {"namespaces": namespaces, "devices": [node for node, _ in devices],
                  "resources": {"devices": [{"allow": False, "access": "rwm"}, *[rule for _, rule in devices]]}},
    }


def make_mountpoints(rootfs, answer):
    """The root is read-only, so the places of the mounts are made before."""
    for mount in answer["mounts"]:
        place = rootfs / mount["container_path"].lstrip("/")
        if os.path.isdir(mount["host_path"]):
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()


def make_bundle(bundle, program, answer):
    """An image made here, with the places of the mounts: its root is read-only."""
    rootfs = bundle / "rootfs"
    make_rootfs(rootfs, program)
    make_mountpoints(rootfs, answer)
    return rootfs


def main():
    arguments = sys.argv[1:]
    flags = []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, flags = arguments[:place], arguments[place + 1:]
    if len(arguments) < 2:
        sys.exit(__doc__)
    plugin, *rest = arguments
    name, answer = allocate(plugin, flags)
    print(f"device {name}: {len(answer['devices'])} device nodes, {len(answer['mounts'])} mounts", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bundle = pathlib.Path(folder)
        if rest[0] == "--image":
            # The runtime makes the places of the mounts, as it does in a pod.
            root, command = {"path": rest[1], "readonly": False}, rest[2:]
        else:
            rootfs = make_bundle(bundle, rest[0], answer)
            root, command = {"path": str(rootfs), "readonly": True}, ["/program", *rest[1:]]
        config = runtime_config(answer, command) | {"root": root}
        (bundle / "config.json").write_text(json.dumps(config))
        command = ["runc", "--root", folder + "/state", "run", "--bundle", folder, f"gpu-{os.getpid()}"]
        sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
