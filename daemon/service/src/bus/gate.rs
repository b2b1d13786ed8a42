//! Admission control: how many calls one user may have open on the bus, over all connections, objects and methods.
//!
//! The gate sees every message as it comes off the socket and every answer when it has been written, so that a call
//! counts from its first byte to the last byte of its answer. Calls beyond a user's share wait here, within bounds, or
//! are refused; either way they cost other users nothing. Descriptors that a method does not take are closed at once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use zbus::Message;
use zbus::message::{Flags, Type};
use zbus::names::{BusName, OwnedUniqueName};
use zbus::wire::serialized::Data;

use super::NAME;

/// How many calls of each kind are served at a time for one user; further calls wait for a place of their kind. Fifty
/// busy clients of one user wait for the disk, not for this limit.
const UNDER_WAY: [usize; 3] = [64, 64, 4];
/// The most bytes of one user's calls, being served and waiting together.
const MOST_BYTES: usize = 8 << 20;
/// The most descriptors of one user's calls, being served and waiting together.
const MOST_DESCRIPTORS: usize = 256;
/// The most bytes of a stranger's calls. A stranger is a connection whose user the bus has not named so far; it stays
/// one for as long as one question to the bus takes.
const STRANGER_BYTES: usize = 64 << 10;
/// The most descriptors of a stranger's calls.
const STRANGER_DESCRIPTORS: usize = 16;
/// The most bytes of all strangers' calls together up to which one stranger may have more than [`STRANGER_BYTES`]
/// waiting.
const STRANGERS_BYTES: usize = 16 << 20;
/// The bytes that a call takes besides those of its message.
const OVERHEAD: usize = 1 << 10;

/// The methods that bring a picture.
const SUBMITS: [&str; 2] = ["Submit", "SubmitPath"];
/// The methods whose answers are long, or take long to read from the ledger.
const HEAVY: [&str; 9] = [
    "Describe",
    "GetJob",
    "GetManagedObjects",
    "History",
    "Introspect",
    "List",
    "Plan",
    "Statistics",
    "Timeline",
];
/// The method that takes descriptors as an argument: a picture, and in its options perhaps one that the video ends at.
const TAKES_DESCRIPTOR: &str = "Submit";

/// The name of the bus itself, as a sender and as a destination.
const BUS: &str = "org.freedesktop.DBus";
const BUSY: &str = "org.animd.Animd1.Error.Busy";
const INVALID: &str = "org.freedesktop.DBus.Error.InvalidArgs";

/// Admits or refuses messages, and counts calls.
pub struct Gate {
    inner: Mutex<Inner>,
    /// Signalled when a waiting call may have its turn.
    freed: Notify,
    /// Signalled when a long answer has been written.
    heavy_answered: Notify,
    name_lost: watch::Sender<bool>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// The gate's verdict on a message.
#[derive(Debug, Default)]
pub struct Judged {
    /// The message, if it is to be served now.
    pub through: Option<Message>,
    /// Messages for the bus: refusals of calls, and questions.
    pub outgoing: Vec<Message>,
}

/// Waits for the caller to leave the bus.
pub struct Leaving(Option<watch::Receiver<()>>);

impl Leaving {
    /// Waits until the caller has left.
    pub async fn left(&mut self) {
        if let Some(here) = &mut self.0 {
            while here.changed().await.is_ok() {}
        }
    }
}

#[derive(Default)]
struct Inner {
    /// The connections that have made calls and are still on the bus.
    callers: HashMap<OwnedUniqueName, Caller>,
    users: HashMap<u32, User>,
    /// The calls that are being served, by caller and serial number, as their answers name them.
    under_way: HashMap<(OwnedUniqueName, NonZeroU32), UnderWay>,
    /// The serial numbers of refusals on their way to the bus. Where a caller gives two calls one number, a refusal may
    /// name the same call as an answer does; it must not end the call that is being served.
    refusals: HashSet<NonZeroU32>,
    /// The callers that the bus was asked about, by the serial numbers of the questions.
    asked: HashMap<NonZeroU32, OwnedUniqueName>,
    /// The users that have a waiting call which may have its turn.
    ready: VecDeque<u32>,
    /// The descriptors of all calls; at most `most_descriptors`.
    descriptors: usize,
    most_descriptors: usize,
    /// The bytes of all strangers' calls.
    stranger_bytes: usize,
}

struct Caller {
    who: Who,
    /// Dropped when the caller leaves.
    here: watch::Sender<()>,
}

enum Who {
    User(u32),
    /// The bus has been asked whose connection this is. Its calls wait here until the bus answers.
    Stranger(Vec<Call>, Cost),
}

/// The calls of one user.
#[derive(Default)]
struct User {
    /// The cost of all calls, being served and waiting.
    held: Cost,
    lanes: [Lane; 3],
}

/// Calls of one user and one kind.
#[derive(Default)]
struct Lane {
    under_way: usize,
    waiting: VecDeque<Call>,
}

/// The kind of work that a call makes. Each kind has places of its own, so that a user who submits a thousand pictures
/// can still ask about them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Quick,
    Submits,
    Heavy,
}

impl Kind {
    fn of(member: &str) -> Self {
        match member {
            member if SUBMITS.contains(&member) => Self::Submits,
            member if HEAVY.contains(&member) => Self::Heavy,
            _ => Self::Quick,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Cost {
    bytes: usize,
    descriptors: usize,
}

impl Cost {
    fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, descriptors: self.descriptors + other.descriptors }
    }

    fn minus(self, other: Self) -> Self {
        Self { bytes: self.bytes - other.bytes, descriptors: self.descriptors - other.descriptors }
    }

    fn fits(self, bytes: usize, descriptors: usize) -> bool {
        self.bytes <= bytes && self.descriptors <= descriptors
    }
}

struct Call {
    message: Message,
    caller: OwnedUniqueName,
    cost: Cost,
    kind: Kind,
}

impl Call {
    fn silent(&self) -> bool {
        self.message.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED)
    }

    fn refuse(&self, name: &'static str, text: &str) -> Option<Message> {
        let error = || Message::error(&self.message.header(), name).build(&text).ok();
        if self.silent() { None } else { error() }
    }

    /// Returns the message as one that wants an answer. The library answers no other message, so that the gate would
    /// not see the call's end.
    fn answerable(self) -> zbus::Result<Message> {
        if !self.silent() {
            return Ok(self.message);
        }
        let data = self.message.data();
        let mut bytes = data.bytes().to_vec();
        // The third byte of every message holds its flags.
        if let Some(flags) = bytes.get_mut(2) {
            *flags &= !Flags::NO_REPLY_EXPECTED.bits();
        }
        let descriptors = data.fds().iter().map(zbus::Fd::try_to_owned).collect::<zbus::Result<Vec<_>>>()?;
        // SAFETY: these are the bytes and descriptors of a valid message, but for one flag.
        unsafe { Message::from_bytes(Data::new_fds(bytes, data.context(), descriptors)) }
    }
}

struct UnderWay {
    uid: u32,
    cost: Cost,
    kind: Kind,
    /// Whether the caller wants no answer.
    silent: bool,
}

impl User {
    /// Returns a call that may begin.
    fn next(&mut self) -> Option<Call> {
        self.lanes.iter_mut().zip(UNDER_WAY).find_map(|(lane, most)| match lane.under_way < most {
            true => lane.waiting.pop_front(),
            false => None,
        })
    }

    fn is_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.under_way == 0 && lane.waiting.is_empty())
    }
}

impl Gate {
    /// Returns the gate of a service that may have `most_files` files open.
    pub fn new(most_files: u64) -> Self {
        // The other half is for the service's own files.
        let most_descriptors = usize::try_from(most_files / 2).unwrap_or(usize::MAX);
        let inner = Mutex::new(Inner { most_descriptors, ..Inner::default() });
        let (freed, heavy_answered) = Default::default();
        Self { inner, freed, heavy_answered, name_lost: watch::Sender::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the uid of a connection's user. It is known of every connection whose call is being served and that has
    /// not left.
    pub fn uid(&self, caller: &str) -> Option<u32> {
        match self.lock().callers.get(caller)?.who {
            Who::User(uid) => Some(uid),
            Who::Stranger(..) => None,
        }
    }

    /// Returns a value that tells when this connection leaves.
    pub fn leaving(&self, caller: &str) -> Leaving {
        Leaving(self.lock().callers.get(caller).map(|caller| caller.here.subscribe()))
    }

    /// Waits until the bus has taken the service's name away.
    pub async fn name_lost(&self) {
        _ = self.name_lost.subscribe().wait_for(|lost| *lost).await;
    }

    /// Waits until a waiting call may have its turn.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Waits until a long answer has been written.
    pub async fn heavy_answered(&self) {
        self.heavy_answered.notified().await;
    }

    /// Returns a call that has waited and may be served now.
    pub fn next(&self) -> Option<Message> {
        let mut inner = self.lock();
        while let Some(uid) = inner.ready.pop_front() {
            let Some(call) = inner.users.get_mut(&uid).and_then(User::next) else { continue };
            inner.ready(uid);
            if let Some(message) = inner.begin(uid, call) {
                return Some(message);
            }
        }
        None
    }

    /// Decides what happens to a message that has arrived.
    pub fn judge(&self, message: Message) -> Judged {
        let header = message.header();
        let of_bus = header.sender().is_some_and(|sender| sender.as_str() == BUS);
        match message.message_type() {
            Type::MethodCall => {
                let mut inner = self.lock();
                let judged = inner.call(&message);
                inner.note(&judged);
                return judged;
            }
            Type::MethodReturn | Type::Error => {
                let answer = header.reply_serial().filter(|_| of_bus);
                if let Some(caller) = answer.and_then(|serial| self.lock().asked.remove(&serial)) {
                    let uid = message.body().deserialize().ok();
                    let uid = uid.filter(|_| message.message_type() != Type::Error);
                    let mut inner = self.lock();
                    let judged = inner.introduced(&caller, uid);
                    inner.note(&judged);
                    drop(inner);
                    self.freed.notify_one();
                    return judged;
                }
            }
            Type::Signal if of_bus => match header.member().map_or("", |member| member.as_str()) {
                "NameOwnerChanged" => {
                    let body = message.body();
                    if let Ok((name, _, "")) = body.deserialize::<(&str, &str, &str)>() {
                        self.lock().left(name);
                        self.freed.notify_one();
                    }
                }
                "NameLost" if message.body().deserialize::<&str>().is_ok_and(|name| name == NAME) => {
                    self.name_lost.send_replace(true);
                }
                _ => {}
            },
            Type::Signal => {}
        }
        Judged { through: Some(message), outgoing: Vec::new() }
    }

    /// Returns whether the caller waits for this answer; true for a message that is no answer.
    pub fn is_wanted(&self, message: &Message) -> bool {
        let Some(call) = answered_call(message) else { return true };
        let inner = self.lock();
        inner.refusals.contains(&message.primary_header().serial_num())
            || !inner.under_way.get(&call).is_some_and(|call| call.silent)
    }

    /// Notes that a message has been written. If it is an answer, its call has ended.
    pub fn answered(&self, message: &Message) {
        let Some(call) = answered_call(message) else { return };
        let mut inner = self.lock();
        if inner.refusals.remove(&message.primary_header().serial_num()) {
            return;
        }
        let Some(call) = inner.under_way.remove(&call) else { return };
        if let Some(user) = inner.users.get_mut(&call.uid) {
            user.lanes[call.kind as usize].under_way -= 1;
        }
        inner.release(call.uid, call.cost);
        drop(inner);
        self.freed.notify_one();
        if call.kind == Kind::Heavy {
            self.heavy_answered.notify_one();
        }
    }
}

/// Returns the call that a message answers.
fn answered_call(message: &Message) -> Option<(OwnedUniqueName, NonZeroU32)> {
    if !matches!(message.message_type(), Type::MethodReturn | Type::Error) {
        return None;
    }
    let header = message.header();
    match (header.destination()?, header.reply_serial()?) {
        (BusName::Unique(caller), serial) => Some((caller.clone().into(), serial)),
        (BusName::WellKnown(_), _) => None,
    }
}

impl Inner {
    fn call(&mut self, message: &Message) -> Judged {
        let header = message.header();
        let Some(caller) = header.sender().map(|sender| OwnedUniqueName::from(sender.clone())) else {
            return Judged::default();
        };
        let member = header.member().map_or("", |member| member.as_str());
        let kind = Kind::of(member);
        let takes = match member {
            TAKES_DESCRIPTOR => 2,
            // Its options are those of a submission.
            "Plan" => 1,
            _ => 0,
        };
        let cost =
            Cost { bytes: message.data().bytes().len() + OVERHEAD, descriptors: message.data().fds().len() };
        let wrong = if cost.descriptors > takes {
            let takes = match takes {
                2 => "two file descriptors at most",
                1 => "one file descriptor at most",
                _ => "no file descriptor",
            };
            Some(format!("{member} takes {takes}, and the call has {}", cost.descriptors))
        } else if cost.bytes > MOST_BYTES {
            Some(format!("a call may have {} MiB, and this one has more", MOST_BYTES >> 20))
        } else {
            None
        };
        let call = Call { caller, cost, kind, message: message.clone() };
        if let Some(text) = wrong {
            return Judged { through: None, outgoing: call.refuse(INVALID, &text).into_iter().collect() };
        }
        let mut judged = Judged::default();
        match self.callers.get_mut(&call.caller).map(|caller| &mut caller.who) {
            Some(Who::User(uid)) => {
                let uid = *uid;
                self.offer(uid, call, &mut judged);
            }
            known => {
                let (waiting, held) = match known {
                    Some(Who::Stranger(waiting, held)) => (waiting, held),
                    _ => {
                        let Some(question) = whose(&call.caller) else { return judged };
                        self.asked.insert(question.primary_header().serial_num(), call.caller.clone());
                        judged.outgoing.push(question);
                        let who = Who::Stranger(Vec::new(), Cost::default());
                        let new = Caller { who, here: watch::Sender::new(()) };
                        let caller = self.callers.entry(call.caller.clone()).insert_entry(new).into_mut();
                        let Who::Stranger(waiting, held) = &mut caller.who else { return judged };
                        (waiting, held)
                    }
                };
                let with = held.plus(call.cost);
                let small = with.fits(STRANGER_BYTES, STRANGER_DESCRIPTORS);
                let large = with.descriptors <= STRANGER_DESCRIPTORS
                    && self.stranger_bytes + call.cost.bytes <= STRANGERS_BYTES;
                if !(small || large) || self.descriptors + call.cost.descriptors > self.most_descriptors {
                    let text = "the bus has not said whose this connection is, and no more calls than these wait for \
                                it; call again when one has been answered";
                    judged.outgoing.extend(call.refuse(BUSY, text));
                    return judged;
                }
                *held = with;
                self.stranger_bytes += call.cost.bytes;
                self.descriptors += call.cost.descriptors;
                waiting.push(call);
            }
        }
        judged
    }

    /// Takes the bus's answer to the question whose connection this is; `None` if the bus cannot say.
    fn introduced(&mut self, name: &OwnedUniqueName, uid: Option<u32>) -> Judged {
        let mut judged = Judged::default();
        let Some(uid) = uid else {
            // In most cases the connection has gone, and no refusal reaches it.
            if let Some(Caller { who: Who::Stranger(waiting, _), .. }) = self.callers.get(name) {
                let text = "the bus does not say whose this connection is; call again";
                judged.outgoing.extend(waiting.iter().filter_map(|call| call.refuse(BUSY, text)));
            }
            self.left(name.as_str());
            return judged;
        };
        let Some(caller) = self.callers.get_mut(name) else { return judged };
        let Who::Stranger(waited, held) = std::mem::replace(&mut caller.who, Who::User(uid)) else {
            return judged;
        };
        self.forget(held);
        for call in waited {
            self.wait(uid, call, &mut judged);
        }
        self.ready(uid);
        judged
    }

    /// Starts a call or lets it wait.
    fn offer(&mut self, uid: u32, call: Call, judged: &mut Judged) {
        self.wait(uid, call, judged);
        // The turn is this call's, or that of one that came before it.
        if let Some(call) = self.users.get_mut(&uid).and_then(User::next) {
            judged.through = self.begin(uid, call);
        }
    }

    /// Lets a call wait for its turn, or refuses it if the user has too much waiting.
    fn wait(&mut self, uid: u32, call: Call, judged: &mut Judged) {
        let user = self.users.entry(uid).or_default();
        let with = user.held.plus(call.cost);
        let busy = if !with.fits(MOST_BYTES, MOST_DESCRIPTORS) {
            "you have as many unanswered calls as one user may have; call again when some are answered"
        } else if self.descriptors + call.cost.descriptors > self.most_descriptors {
            "as many pictures of all users together are being taken as files may be open; call again a little later"
        } else {
            user.held = with;
            self.descriptors += call.cost.descriptors;
            user.lanes[call.kind as usize].waiting.push_back(call);
            return;
        };
        if user.is_idle() {
            self.users.remove(&uid);
        }
        judged.outgoing.extend(call.refuse(BUSY, busy));
    }

    /// Remembers which of the messages to be sent are refusals.
    fn note(&mut self, judged: &Judged) {
        let refusals = judged.outgoing.iter().filter(|message| message.message_type() == Type::Error);
        self.refusals.extend(refusals.map(|message| message.primary_header().serial_num()));
    }

    /// Returns the message of a call that is served from now on.
    fn begin(&mut self, uid: u32, call: Call) -> Option<Message> {
        let key = (call.caller.clone(), call.message.primary_header().serial_num());
        let begun = UnderWay { uid, cost: call.cost, kind: call.kind, silent: call.silent() };
        let (cost, kind) = (call.cost, call.kind);
        // Two calls of one number could not be told apart; no honest caller makes them.
        let message = if self.under_way.contains_key(&key) { None } else { call.answerable().ok() };
        let Some(message) = message else {
            self.release(uid, cost);
            return None;
        };
        self.under_way.insert(key, begun);
        let user = self.users.entry(uid).or_default();
        user.lanes[kind as usize].under_way += 1;
        Some(message)
    }

    /// Frees what a user's call has taken.
    fn release(&mut self, uid: u32, cost: Cost) {
        self.descriptors -= cost.descriptors;
        let Some(user) = self.users.get_mut(&uid) else { return };
        user.held = user.held.minus(cost);
        if user.is_idle() {
            self.users.remove(&uid);
        } else {
            self.ready(uid);
        }
    }

    fn ready(&mut self, uid: u32) {
        if !self.ready.contains(&uid) {
            self.ready.push_back(uid);
        }
    }

    /// Frees what a stranger's calls have taken.
    fn forget(&mut self, held: Cost) {
        self.stranger_bytes -= held.bytes;
        self.descriptors -= held.descriptors;
    }

    /// Drops the waiting calls of a connection that has left. Calls that are being served end by themselves.
    fn left(&mut self, name: &str) {
        let Some(caller) = self.callers.remove(name) else { return };
        let uid = match caller.who {
            Who::Stranger(_, held) => return self.forget(held),
            Who::User(uid) => uid,
        };
        let Some(user) = self.users.get_mut(&uid) else { return };
        let mut dropped = Cost::default();
        for lane in &mut user.lanes {
            lane.waiting.retain(|call| {
                let stays = call.caller.as_str() != name;
                if !stays {
                    dropped = dropped.plus(call.cost);
                }
                stays
            });
        }
        self.release(uid, dropped);
    }
}

/// Returns the message that asks the bus for the user of a connection.
fn whose(caller: &OwnedUniqueName) -> Option<Message> {
    Message::method_call("/org/freedesktop/DBus", "GetConnectionUnixUser")
        .destination(BUS)
        .interface(BUS)
        .build(&caller.as_str())
        .ok()
}

#[cfg(test)]
mod tests;
