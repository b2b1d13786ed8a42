#!/usr/bin/env -S gjs -m
// Makes a video of a picture over D-Bus:
//
//   gjs -m submit.js [--user] PICTURE PROMPT VIDEO
//
// --user asks the animd of the session, else it is the system's.

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';
import System from 'system';

const NAME = 'org.animd.Animd1';
const MANAGER = 'org.animd.Animd1.Manager';
const JOB = 'org.animd.Animd1.Job';

// Calls a method; gives its values, and the descriptors that came with them.
function call(bus, path, iface, method, parameters = null, descriptors = null) {
    // A password may be asked for where polkit wants one; there is no hurry.
    const flags = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION;
    const [reply, received] = bus.call_with_unix_fd_list_sync(
        NAME, path, iface, method, parameters, null, flags, GLib.MAXINT32, descriptors, null);
    return [reply.deepUnpack(), received];
}

function submit(bus, picture, options) {
    const stream = Gio.File.new_for_commandline_arg(picture).read(null);
    const descriptors = new Gio.UnixFDList();
    // A descriptor travels beside the message, which has its place in the list.
    const at = descriptors.append(stream.get_fd());
    const [[job]] = call(bus, '/org/animd/Animd1', MANAGER, 'Submit',
        new GLib.Variant('(ha{sv})', [at, options]), descriptors);
    stream.close(null);
    return job;
}

// Shows the job's progress until it has ended; gives the state that it ended in, or null if animd has gone away.
function wait(bus, job) {
    // The proxy listens first and reads then, so that no change is missed in between.
    const proxy = Gio.DBusProxy.new_sync(bus, Gio.DBusProxyFlags.NONE, null, NAME, job, JOB, null);
    // There are no values while there is no animd.
    const property = name => proxy.get_cached_property(name)?.deepUnpack() ?? null;
    const away = () => proxy.g_name_owner === null || property('State') === null;
    const hasEnded = () => away() || ['done', 'failed', 'canceled'].includes(property('State'));
    const loop = new GLib.MainLoop(null, false);
    const look = () => {
        if (hasEnded())
            loop.quit();
        else
            printerr(`${Math.round(100 * property('Progress'))} % ${property('Stage')}`);
    };
    proxy.connect('g-properties-changed', look);
    proxy.connect('notify::g-name-owner', look);
    if (!hasEnded())
        loop.run();
    return away() ? null : property('State');
}

function fetch(bus, job, video) {
    // Of a job that failed the answer is its error, in words.
    const [[at], descriptors] = call(bus, job, JOB, 'OpenResult');
    const result = new Gio.UnixInputStream({fd: descriptors.get(at), close_fd: true});
    const copy = Gio.File.new_for_commandline_arg(video).create(Gio.FileCreateFlags.NONE, null);
    copy.splice(result,
        Gio.OutputStreamSpliceFlags.CLOSE_SOURCE | Gio.OutputStreamSpliceFlags.CLOSE_TARGET, null);
    call(bus, job, JOB, 'Collected');
}

function main(argv) {
    const [picture, prompt, video] = argv.filter(argument => argument !== '--user');
    if (!video) {
        printerr('usage: gjs -m submit.js [--user] PICTURE PROMPT VIDEO');
        return 2;
    }
    if (Gio.File.new_for_commandline_arg(video).query_exists(null)) {
        printerr(`\`${video}\` exists already; choose another name`);
        return 1;
    }
    const kind = argv.includes('--user') ? Gio.BusType.SESSION : Gio.BusType.SYSTEM;
    try {
        const bus = Gio.bus_get_sync(kind, null);
        const job = submit(bus, picture,
            {prompt: new GLib.Variant('s', prompt), keep: new GLib.Variant('s', 'caller')});
        const state = wait(bus, job);
        if (state === null) {
            const number = job.split('/').at(-1);
            printerr(`animd has gone away; it goes on with the job when it is back: \`animctl fetch ${number} FILE\``);
            return 1;
        }
        printerr(`${job} is ${state}`);
        fetch(bus, job, video);
        return 0;
    } catch (error) {
        // org.animd.Animd1.Error.QueueFull and the like; the message has the remedy.
        const name = Gio.DBusError.get_remote_error(error);
        // GLib puts the name into the message, too.
        const text = error.message.replace(`GDBus.Error:${name}: `, '');
        printerr(name ? `${name}: ${text}` : text);
        return 1;
    }
}

System.exit(main(System.programArgs));
