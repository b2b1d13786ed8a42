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
        # A password may be asked for where polkit wants one; there is no hurry.
        Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION, GLib.MAXINT, descriptors, None)
    return answer.unpack(), received


def submit(bus, picture, options):
    """Sends an open picture; gives its job's path."""
    descriptors = Gio.UnixFDList.new()
    # A descriptor travels beside the message, which has its place in the list.
    arguments = GLib.Variant("(ha{sv})", (descriptors.append(picture.fileno()), options))
    (job,), _ = call(bus, "/org/animd/Animd1", MANAGER, "Submit", arguments, "(o)", descriptors)
    return job


def wait(bus, job):
    """Shows the job's progress until it has ended; gives the state that it ended in."""
    loop = GLib.MainLoop()
    ended = []

    def look(changed):
        if "Progress" in changed or "Stage" in changed:
            proxied = {key: proxy.get_cached_property(key).unpack() for key in ("Stage", "Progress")}
            print(f"{100 * proxied['Progress']:3.0f} % {proxied['Stage']}", file=sys.stderr)
        if proxy.get_cached_property("State").unpack() in ("done", "failed", "canceled"):
            ended.append(proxy.get_cached_property("State").unpack())
            loop.quit()

    # The proxy listens first and reads then, so that no change is missed in between.
    proxy = Gio.DBusProxy.new_sync(bus, Gio.DBusProxyFlags.NONE, None, NAME, job, JOB, None)
    proxy.connect("g-properties-changed", lambda _, changed, __: look(changed.unpack()))
    GLib.idle_add(lambda: look({}))
    loop.run()
    return ended[0]


def main():
    arguments = [a for a in sys.argv[1:] if a != "--user"]
    if len(arguments) != 3:
        sys.exit(__doc__)
    picture, prompt, video = arguments
    kind = Gio.BusType.SESSION if "--user" in sys.argv else Gio.BusType.SYSTEM
    bus = Gio.bus_get_sync(kind, None)
    try:
        with open(picture, "rb") as file:
            options = {"prompt": GLib.Variant("s", prompt), "keep": GLib.Variant("s", "caller")}
            job = submit(bus, file, options)
        print(f"{job} is {wait(bus, job)}", file=sys.stderr)
        # Of a job that failed the answer is its error, in words.
        (at,), descriptors = call(bus, job, JOB, "OpenResult", None, "(h)")
        with os.fdopen(descriptors.get(at), "rb") as result, open(video, "xb") as copy:
            while block := result.read(1 << 20):
                copy.write(block)
        call(bus, job, JOB, "Collected")
    except GLib.Error as error:
        # org.animd.Animd1.Error.QueueFull and the like; the message has the remedy.
        name = Gio.DBusError.get_remote_error(error)
        Gio.DBusError.strip_remote_error(error)
        sys.exit(f"{name}: {error.message}")


if __name__ == "__main__":
    main()
