#!/usr/bin/env python3
"""Makes a video of a picture over D-Bus.

    submit.py [--user] PICTURE PROMPT VIDEO

Needs python3-gi, which desktops have. --user asks the animd of the session, else it is the system's.
"""

import os
import sys

from gi.repository import Gio, GLib

NAME = "org.animd.Animd1"
MANAGER = "org.animd.Animd1.Manager"
JOB = "org.animd.Animd1.Job"


def call(bus, path, interface, method, arguments=None, reply=None, descriptors=None):
    """Calls a method; gives its values, and the descriptors that came with them."""
    answer, received = bus.call_with_unix_fd_list_sync(
        NAME, path, interface, method, arguments, reply and GLib.VariantType(reply),
        # polkit may ask for a password, so the call has no timeout.
        Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION, GLib.MAXINT, descriptors, None)
    return answer.unpack(), received


def submit(bus, picture, options):
    """Sends an open picture; gives its job's path."""
    descriptors = Gio.UnixFDList.new()
    # A descriptor travels beside the message, which holds its index in the list.
    arguments = GLib.Variant("(ha{sv})", (descriptors.append(picture.fileno()), options))
    (job,), _ = call(bus, "/org/animd/Animd1", MANAGER, "Submit", arguments, "(o)", descriptors)
    return job


def wait(bus, job):
    """Shows the job's progress until it has ended; gives the state that it ended in, or None if animd has gone away."""
    loop = GLib.MainLoop()

    def value(name):
        # There are no values while there is no animd.
        cached = proxy.get_cached_property(name)
        return None if cached is None else cached.unpack()

    def look(*_):
        state = value("State")
        if proxy.get_name_owner() is None or state in (None, "done", "failed", "canceled"):
            loop.quit()
        else:
            print(f"{100 * (value('Progress') or 0):3.0f} % {value('Stage')}", file=sys.stderr)

    # The proxy listens first and reads then, so that no change is missed in between.
    proxy = Gio.DBusProxy.new_sync(bus, Gio.DBusProxyFlags.NONE, None, NAME, job, JOB, None)
    proxy.connect("g-properties-changed", look)
    proxy.connect("notify::g-name-owner", look)
    GLib.idle_add(look)
    loop.run()
    return value("State") if proxy.get_name_owner() else None


def make(user, picture, prompt, video):
    """Has the video made and copies it into a new file."""
    if os.path.lexists(video):
        sys.exit(f"`{video}` exists already; choose another name")
    bus = Gio.bus_get_sync(Gio.BusType.SESSION if user else Gio.BusType.SYSTEM, None)
    with open(picture, "rb") as file:
        options = {"prompt": GLib.Variant("s", prompt), "keep": GLib.Variant("s", "caller")}
        job = submit(bus, file, options)
    state = wait(bus, job)
    if state is None:
        number = job.rpartition("/")[2]
        sys.exit(f"animd has gone away; it goes on with the job when it is back: `animctl fetch {number} FILE`")
    print(f"{job} is {state}", file=sys.stderr)
    # If the job failed, the answer is its error, in words.
    (at,), descriptors = call(bus, job, JOB, "OpenResult", None, "(h)")
    with os.fdopen(descriptors.get(at), "rb") as result, open(video, "xb") as copy:
        while block := result.read(1 << 20):
            copy.write(block)
    call(bus, job, JOB, "Collected")


def main():
    arguments = [a for a in sys.argv[1:] if a != "--user"]
    if len(arguments) != 3:
        sys.exit(__doc__)
    try:
        make("--user" in sys.argv, *arguments)
    except GLib.Error as error:
        # org.animd.Animd1.Error.QueueFull and the like; the message has the remedy.
        name = Gio.DBusError.get_remote_error(error)
        # GLib puts the name into the message, too. (Gio.DBusError.strip_remote_error changes nothing from Python.)
        text = error.message.replace(f"GDBus.Error:{name}: ", "", 1)
        sys.exit(f"{name}: {text}" if name else text)
    except OSError as error:
        sys.exit(f"`{error.filename}`: {error.strerror}")


if __name__ == "__main__":
    main()
