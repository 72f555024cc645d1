"""Talking to Android devices through the ``adb`` program.

What a command on the phone returned is told by a line that it prints after it, not by the exit code of
``adb``: that one is 1 both for a command that fails and for a phone that is not there, and before
Android 7 it is 0 for all commands. Without that line, the phone went away in the middle.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mobilefit.errors import InputError, did_you_mean

QUICK_SECONDS = 30.0
"""For what takes no time; the first call starts adb's server."""
PUSH_SECONDS = 120.0
EXIT_MARK = "mobilefit: exit code "
INSTALL = (
    "install Android's platform tools: apt install adb, brew install android-platform-tools, or "
    "https://developer.android.com/tools/releases/platform-tools"
)
BROKEN = re.compile(r"not found|offline|closed|couldn't read from device|EOF|protocol fault|reset")
"""In what ``adb push`` says when the phone goes away in the middle."""
STATES = {
    "unauthorized": ("does not trust this computer yet",
                     "unlock it and accept the prompt on the phone, then try again"),
    "authorizing": ("is being asked whether it trusts this computer",
                    "accept the prompt on the phone, then try again"),
    "offline": ("is offline", "unplug it and plug it in again, or: adb kill-server"),
    "no permissions": ("may not be opened by this user",
                       "apt install android-sdk-platform-tools-common (udev rules), and plug it in again"),
}  # fmt: skip
"""What is wrong with a device in a state of ``adb devices``, and what to do."""


class Gone(InputError):
    """The phone does not answer: unplugged, restarting, out of reach."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A device as ``adb devices -l`` lists it."""

    serial: str
    state: str
    """``device`` when it can be used; else one of :data:`STATES`, ``recovery`` and others."""
    model: str
    """As it calls itself; empty where it does not say."""

    def __str__(self) -> str:
        what = [self.model, "" if self.state == "device" else self.state]
        return " ".join([f"android:{self.serial}", *(f"({word})" for word in what if word)])


class Answer(NamedTuple):
    """What a command on the phone gave: its exit code, and what it printed on both streams."""

    code: int
    text: str

    @property
    def last_line(self) -> str:
        """The last that it said."""
        return last_line(self.text) or f"exit code {self.code}, nothing printed"


def last_line(text: str) -> str:
    """The last line that is not blank; ``""`` where there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def seen() -> list[Seen]:
    """Every device that adb sees, whatever its state.

    Raises:
        InputError: adb is not installed, or its server does not start.
    """
    done = _adb("devices", "-l", timeout=QUICK_SECONDS)
    if done.returncode:
        raise InputError(f"adb does not work: {last_line(done.stderr)}", "try: adb kill-server")
    _, _, listing = done.stdout.partition("List of devices attached")
    return [found for line in listing.splitlines() if (found := _seen(line)) is not None]


def _seen(line: str) -> Seen | None:
    parts = re.fullmatch(r"(\S+)\s+(no permissions|\S+)(.*)", line.strip())
    if parts is None or line.startswith("*"):  # "* daemon started successfully"
        return None
    model = re.search(r"\bmodel:(\S+)", parts[3])
    return Seen(
        serial=parts[1], state=parts[2], model=model[1].replace("_", " ") if model else ""
    )


def choose(serial: str | None = None) -> Seen:
    """The device of that serial number, or the only one.

    Args:
        serial: ``None``: as adb itself, the one that ``ANDROID_SERIAL`` names.

    Raises:
        InputError: none, several, an unknown one, or one that cannot be used (says why).
    """
    serial = serial or os.environ.get("ANDROID_SERIAL") or None
    devices = seen()
    if not devices:
        raise InputError(
            "adb sees no Android device",
            "plug one in, switch USB debugging on in its developer options, accept its prompt",
        )
    listed = ", ".join(map(str, devices))
    if serial is not None:
        found = [device for device in devices if device.serial == serial]
        if not found:
            near = did_you_mean(serial, [device.serial for device in devices])
            raise InputError(f"adb sees no device '{serial}'", near or f"it sees {listed}")
    elif len(devices) > 1:
        raise InputError(f"adb sees {len(devices)} devices", f"choose one: --device {listed}")
    else:
        found = devices
    device = found[0]
    if device.state != "device":
        what, hint = STATES.get(device.state, (f"is in the state '{device.state}'", "start Android"))
        raise InputError(f"the phone {device.serial} {what}", hint)
    return device


@dataclass(frozen=True)
class Adb:
    """One device.

    Every method raises :class:`Gone` when it does not answer.
    """

    serial: str

    def shell(self, command: str, *, timeout: float = QUICK_SECONDS) -> Answer:
        """Run a line of the phone's shell."""
        done = self._run("shell", f'( {command} ) 2>&1; echo "{EXIT_MARK}$?"', timeout=timeout)
        text, _, code = done.stdout.rpartition(EXIT_MARK)
        if not code.strip().isdigit():
            raise self._gone(last_line(done.stderr))
        return Answer(int(code), text)

    def push(self, file: Path, there: str, what: str) -> None:
        """Copy a file to the phone.

        Args:
            what: what is copied, for the message.

        Raises:
            InputError: no space left there, or it cannot be written.
        """
        done = self._run("push", str(file), there, timeout=PUSH_SECONDS)
        if done.returncode == 0:
            return
        said = last_line(done.stderr) or last_line(done.stdout)
        if "No space left" in said:
            size = file.stat().st_size / 1e6
            raise InputError(
                f"no space left on the phone {self.serial} for {what} ({size:.1f} MB in {there})",
                "free some of its storage",
            )
        if BROKEN.search(said) or not self.present():
            raise self._gone(said)
        raise InputError(f"cannot copy {what} to the phone {self.serial}: {said}")

    def present(self) -> bool:
        """Whether it can be used right now."""
        return self._run("get-state", timeout=QUICK_SECONDS).stdout.strip() == "device"

    def wait(self, seconds: float) -> bool:
        """Wait until it is back; whether it is."""
        try:
            return self._run("wait-for-device", timeout=seconds).returncode == 0
        except Gone:
            return False

    def _run(self, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
        try:
            return _adb("-s", self.serial, *words, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise Gone(
                f"the phone {self.serial} did not answer within {timeout:.0f} s",
                "unlock it and plug it in again, or: adb kill-server",
            ) from error

    def _gone(self, said: str) -> Gone:
        why = f" ({said})" if said else ""
        return Gone(f"the phone {self.serial} went away{why}", "plug it in again")


def _adb(*words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["adb", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise InputError("there is no adb on the PATH", INSTALL) from error
    except OSError as error:
        raise InputError(f"adb cannot be started: {error.strerror}", INSTALL) from error
