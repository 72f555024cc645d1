"""A stand-in for ``adb`` and a phone: a program that answers as the documented one does.

The phone's files lie in a folder; its shell is this machine's ``sh``, with the phone's paths put below
that folder and with the phone's own commands (``getprop``, ``taskset``) in front of the PATH. So the
shell lines are really parsed and run. ``benchmark_model`` is simulated: a file takes as many
microseconds as it has bytes, printed in the format of a version of the tool.

As a program: ``python -IS adb_standin.py FOLDER adb ARGUMENTS...`` (or ``tool`` in the place of
``adb``); as a module: :class:`StandIn`, which sets it up for a test.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time

if __name__ != "__main__":  # the program starts in every call: in 10 ms, without these
    import shutil
    from pathlib import Path
    from typing import Any

OUR_FOLDER = re.compile(r"/data/local/tmp/mobilefit-[0-9a-f]{8}")
PROPERTIES = {
    "ro.product.manufacturer": "Google", "ro.product.model": "Pixel 6", "ro.board.platform": "gs101",
    "ro.build.version.release": "14", "ro.product.cpu.abi": "arm64-v8a",
}  # fmt: skip
FREQUENCIES = [1803000] * 4 + [2253000] * 2 + [2802000] * 2
"""kHz; of a Pixel 6."""
UNAUTHORIZED = (
    "adb: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n"
    "Try 'adb kill-server' if that seems wrong.\n"
    "Otherwise check for a confirmation dialog on your device."
)
PLUGGED = "usb:1-4 product:oriole model:Pixel_6 device:oriole transport_id:{number}"
START = {
    "devices": {"P6SERIAL": "device"},  # state by serial number
    "vanish": [],  # after so many commands to a device it goes away; again for each number
    "comes_back": True,
    "gone": False,
    "full": False,  # no space left
    "hang": "",  # commands with this in them never end
    "fail": [],  # the tool's last words, for files of an odd number of bytes
    "runs_here": True,  # is the tool for this phone?
    "format": "2025",
    "wobble": [1.0],  # factor of each run of the tool in turn
    "rounds": 0,
}


class StandIn:
    """The phone and the ``adb`` of a test.

    Args:
        folder: of both; ``folder/bin`` belongs in front of the PATH.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.root, commands = folder / "phone", folder / "commands"
        (self.root / "data/local/tmp").mkdir(parents=True)
        me = f'exec {sys.executable} -IS {Path(__file__).resolve()} "{folder}"'
        for place, name, script in (
            (self.bin, "adb", f'{me} adb "$@"'),
            (commands, "simulated", f'{me} tool "$@"'),
            (commands, "getprop", f'cat "{folder}/properties/$1" 2>/dev/null || echo'),
            (commands, "taskset",
             f'case $1 in 1|2|4|8|10|20|40|80) ;; *) echo "taskset: failed to set pid $$\'s affinity: '
             f'Invalid argument" >&2; exit 1;; esac\necho "$1" >> "{folder}/masks"\nshift\nexec "$@"'),
        ):  # fmt: skip
            place.mkdir(exist_ok=True)
            (place / name).write_text(f"#!/bin/sh\n{script}\n")
            (place / name).chmod(0o755)
        (folder / "properties").mkdir()
        for name, value in PROPERTIES.items():
            (folder / "properties" / name).write_text(value + "\n")
        self.cores(FREQUENCIES)
        self.write(START)

    def cores(self, frequencies: list[int | None]) -> None:
        """The phone's cores; ``None``: one that does not tell its frequency."""
        cpus = self.root / "sys/devices/system/cpu"
        shutil.rmtree(cpus, ignore_errors=True)
        for number, khz in enumerate(frequencies):
            (cpus / f"cpu{number}" / "cpufreq").mkdir(parents=True)
            if khz is not None:
                (cpus / f"cpu{number}/cpufreq/cpuinfo_max_freq").write_text(f"{khz}\n")
                (cpus / f"cpu{number}/cpufreq/scaling_governor").write_text("schedutil\n")
        (cpus / "present").write_text(f"0-{len(frequencies) - 1}\n")

    def write(self, state: dict[str, Any]) -> None:
        (self.folder / "state.json").write_text(json.dumps(state))

    def set(self, **changes: Any) -> None:
        """Change how it behaves: the keys of ``START``."""
        self.write({**self.state, **changes})

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    def calls(self, word: str = "") -> list[list[str]]:
        """The commands so far; those with a word in them."""
        log = self.folder / "calls.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [call for call in map(json.loads, lines) if word in " ".join(call)]

    def masks(self) -> list[str]:
        """The masks that runs of the tool were pinned by."""
        path = self.folder / "masks"
        return path.read_text().split() if path.exists() else []

    def left(self) -> list[str]:
        """What lies in the phone's folder for programs."""
        return sorted(path.name for path in (self.root / "data/local/tmp").iterdir())

    def tool(self, path: Path | None = None) -> Path:
        """A ``benchmark_model``: a file here, or the one on the phone."""
        path = path or self.root / "data/local/tmp/benchmark_model"
        path.write_bytes(b"\x7fELF benchmark_model")
        path.chmod(0o755)
        return path


# ---- the program


def fail(message: str, code: int = 1) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(code)


class Program:
    """One call of ``adb``."""

    def __init__(self, folder: str) -> None:
        self.folder, self.root = folder, f"{folder}/phone"
        with open(f"{folder}/state.json") as file:
            self.state: dict[str, Any] = json.load(file)

    def save(self, **changes: Any) -> None:
        self.state.update(changes)
        with open(f"{self.folder}/state.json", "w") as file:
            json.dump(self.state, file)

    def adb(self, words: list[str]) -> None:
        with open(f"{self.folder}/calls.jsonl", "a") as log:
            log.write(json.dumps(words) + "\n")
        if self.state["hang"] and self.state["hang"] in " ".join(words):
            time.sleep(60)
        if words[:1] == ["devices"]:
            return self.devices()
        serial, (command, *arguments) = words[1], words[2:]
        assert words[0] == "-s", words
        commands = {
            "shell": self.shell, "push": self.push, "get-state": lambda: print("device"),
            "wait-for-device": lambda: None,
        }  # fmt: skip
        if command == "wait-for-device":
            self.wait()
        self.check(serial)
        if self.vanishes():
            if command == "push":
                self.copy("/dev/null", self.root + arguments[1])  # a part of the file
                fail("adb: error: failed to read copy response: EOF")
            raise SystemExit(255)  # adb shell says nothing
        commands[command](*arguments)

    def devices(self) -> None:
        """As ``adb devices -l``."""
        print("* daemon not running; starting now at tcp:5037", file=sys.stderr)
        print("List of devices attached")
        gone = self.state["gone"]
        for number, (serial, state) in enumerate(self.state["devices"].items(), 1):
            if state == "no permissions":
                state += (" (missing udev rules? user is in the plugdev group); see "
                          "[http://developer.android.com/tools/device.html]")  # fmt: skip
            about = PLUGGED if state == "device" else "usb:1-4 transport_id:{number}"
            if not gone:
                print(f"{serial:<22} {state} {about.format(number=number)}")
        print()

    def check(self, serial: str) -> None:
        """What adb says of a device that it cannot talk to."""
        state = self.state["devices"].get(serial)
        if state is None or self.state["gone"]:
            fail(f"adb: device '{serial}' not found")
        if state == "unauthorized":
            fail(UNAUTHORIZED)
        if state != "device":
            fail(f"adb: device {state}")

    def vanishes(self) -> bool:
        """Count the command; whether the device goes away in it."""
        if not self.state["vanish"]:
            return False
        left, *rest = self.state["vanish"]
        self.save(vanish=[left - 1, *rest] if left > 1 else rest, gone=left == 1)
        return bool(left == 1)

    def wait(self) -> None:
        if self.state["gone"] and not self.state["comes_back"]:
            time.sleep(60)
        self.save(gone=False)

    def push(self, file: str, there: str) -> None:
        if self.state["full"]:
            fail(f"adb: error: failed to copy '{file}' to '{there}': remote write failed: No space "
                 "left on device")  # fmt: skip
        try:
            self.copy(file, self.root + there)
        except FileNotFoundError:
            fail(f"adb: error: failed to copy '{file}' to '{there}': remote couldn't create file: "
                 "No such file or directory")  # fmt: skip
        print(f"{file}: 1 file pushed, 0 skipped. 28.3 MB/s (12067 bytes in 0.001s)")

    def copy(self, file: str, there: str) -> None:
        with open(file, "rb") as source, open(there, "wb") as target:
            target.write(source.read())

    def shell(self, line: str) -> None:
        """The phone's shell, and its exit code."""
        for words in re.findall(r"\brm -rf ([^;)]*)", line):
            assert all(OUR_FOLDER.fullmatch(word) for word in words.split()), line
        line = re.sub(r"(\S+/benchmark_model)(?= --graph=)", r"simulated \1", line)
        line = line.replace("/data/local/tmp", f"{self.root}/data/local/tmp")
        line = line.replace("/sys/devices", f"{self.root}/sys/devices")
        path = f"{self.folder}/commands:{os.environ['PATH']}"
        os.execvpe("sh", ["sh", "-c", line], {**os.environ, "PATH": path})

    # ---- benchmark_model

    def tool(self, words: list[str]) -> None:
        program, flags = words[0], dict(word.lstrip("-").split("=", 1) for word in words[1:])
        if not os.path.exists(program):
            fail(f"/system/bin/sh: {program}: inaccessible or not found", 127)
        if not os.access(program, os.X_OK):
            fail(f"/system/bin/sh: {program}: can't execute: Permission denied", 126)
        if not self.state["runs_here"]:
            fail(f"/system/bin/sh: {program}: not executable: 64-bit ELF file", 126)
        size = os.path.getsize(flags["graph"])
        prefix = "" if self.state["format"] in ("2018", "2020", "same") else "INFO: "

        def say(line: str) -> None:
            print(prefix + line, flush=True)

        say("STARTING!")
        say(f"Graph: [{flags['graph']}]")
        if size % 2 and self.state["fail"]:
            for line in self.state["fail"]:
                print(line, file=sys.stderr)
            raise SystemExit(1)
        say(f"Loaded model {flags['graph']}")
        wobble = self.state["wobble"][self.state["rounds"] % len(self.state["wobble"])]
        self.save(rounds=self.state["rounds"] + 1)
        print(FORMATS[self.state["format"]].format(
            count=flags["num_runs"], avg=f"{size * wobble:.6g}", low=int(size * wobble * 0.9),
            high=int(size * wobble * 1.2), mid=int(size * wobble),
        ))  # fmt: skip
        if flags["enable_op_profiling"] == "true":
            print(PROFILE)


FORMATS = {
    "2018": """\
Initialized session in 9.89ms
Running benchmark for at least 1 iterations and at least 0.5 seconds
count=4 first=606701 curr=568090 min=567461 max=606701 avg=577904 std=16640

Running benchmark for at least {count} iterations and at least 1 seconds
count={count} first={high} curr={mid} min={low} max={high} avg={avg} std=156

Average inference timings in us: Warmup: 577904, Init: 9890, no stats: {avg}
""",
    "2020": """\
The input model file size (MB): 5.42276
Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the delegate w/ 22 delegate kernels.
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=1 curr=3512391

Running benchmark for at least {count} iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count={count} first={high} curr={mid} min={low} max={high} avg={avg} std=109

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): {avg}
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.
Peak memory footprint (MB): init=4.92969 overall=138.809
""",
    "2025": """\
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 117 out of 117 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for subgraph 0.
INFO: The input model file size (MB): 3.06409
INFO: Initialized session in 92.318ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=3 first=235158 curr=200386 min=199462 max=235158 avg=211669 std=16613 p5=199462 median=200386 p95=235158

INFO: Running benchmark for at least {count} iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count={count} first={high} curr={mid} min={low} max={high} avg={avg} std=13 p5={low} median={mid} p95={high}

INFO: Inference timings in us: Init: 92318, First inference: 235158, Warmup (avg): 211669, Inference (avg): {avg}
INFO: Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
""",
    "same": """\
count=1 curr=20

count={count} curr={mid}(all same)

Inference timings in us: Init: 178, First inference: 20, Warmup (avg): 20, Inference (avg): {avg}
""",
    "silent": "INFO: Loaded model, and nothing else",
}
"""By year of the version: TensorFlow 1.12, 2.3, and LiteRT's of today."""

PROFILE = """\
INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t                     [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t         ModifyGraphWithDelegate\t    6.348\t    6.348\t100.000%\t100.000%\t  7148.000\t        1\tModifyGraphWithDelegate/0

Number of nodes executed: 1
Timings (microseconds): count=1 curr=11409
INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t                     [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                        QUANTIZE\t    0.199\t    0.203\t  1.328%\t  1.328%\t     0.000\t        1\t[tfl.quantize]:0
\t   Convolution (NHWC, QC8) IGEMM\t    0.398\t    0.407\t  2.658%\t  3.986%\t     0.000\t        1\tDelegate/Convolution (NHWC, QC8) IGEMM:0

============================== Top by Computation Time ==============================
\t                     [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t   Convolution (NHWC, QC8) IGEMM\t    0.398\t    0.407\t  2.658%\t  3.986%\t     0.000\t        1\tDelegate/Convolution (NHWC, QC8) IGEMM:0

Timings (microseconds): count=50 first=597 curr=610 min=590 max=620 avg=610 std=5
Memory (bytes): count=0
"""


if __name__ == "__main__":
    _, where, role, *rest = sys.argv
    getattr(Program(where), role)(rest)
