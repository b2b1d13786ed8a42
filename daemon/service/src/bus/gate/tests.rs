//! Tests of the gate by itself, with messages as the bus passes them on.

use std::fs::File;

use super::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Returns a call as it comes off the bus.
fn call(caller: &str, member: &str, flags: Flags) -> zbus::Result<Message> {
    Message::method_call("/org/animd/Animd1", member)
        .sender(caller)
        .destination(NAME)
        .interface("org.animd.Animd1.Manager")
        .with_flags(flags)
        .build(&())
}

/// Returns a call with a descriptor, as it comes off the bus.
fn with_descriptor(caller: &str, member: &str) -> zbus::Result<Message> {
    let nothing = File::open("/dev/null")?;
    Message::method_call("/org/animd/Animd1", member)
        .sender(caller)
        .destination(NAME)
        .interface("org.animd.Animd1.Manager")
        .build(&zbus::Fd::from(std::os::fd::OwnedFd::from(nothing)))
}

fn signal(
    sender: &str,
    member: &str,
    body: &(impl serde::Serialize + zbus::DynamicType),
) -> zbus::Result<Message> {
    Message::signal("/org/freedesktop/DBus", BUS, member).sender(sender).build(body)
}

/// Gives the gate the bus's answer to `question`: the connection belongs to `uid`.
fn introduce(gate: &Gate, question: &Message, uid: u32) -> zbus::Result<Judged> {
    let answer = Message::method_return(&question.header()).sender(BUS).build(&uid)?;
    Ok(gate.judge(answer))
}

/// Returns a gate that knows a connection of user 1, named `:1.1`, and one of user 2, named `:1.2`.
fn gate() -> Result<Gate, Box<dyn std::error::Error>> {
    let gate = Gate::new(10_000);
    for uid in [1, 2] {
        let first = call(&format!(":1.{uid}"), "Ping", Flags::empty())?;
        let judged = gate.judge(first.clone());
        assert!(judged.through.is_none());
        introduce(&gate, &judged.outgoing[0], uid)?;
        let through = gate.next().ok_or("the first call has its turn")?;
        assert_eq!(through.header().member(), first.header().member());
        answer(&gate, &through)?;
    }
    assert_eq!((gate.uid(":1.1"), gate.uid(":1.2"), gate.uid(":1.3")), (Some(1), Some(2), None));
    Ok(gate)
}

fn answer(gate: &Gate, call: &Message) -> zbus::Result<()> {
    gate.answered(&Message::method_return(&call.header()).build(&())?);
    Ok(())
}

#[test]
fn only_one_method_takes_a_descriptor() {
    let contract = include_str!("../../../../dbus/org.animd.Animd1.xml");
    let takes: Vec<&str> = contract
        .split("<method name=\"")
        .skip(1)
        .filter(|method| {
            let arguments = method.split("</method>").next().unwrap_or_default();
            arguments.contains("type=\"h\" direction=\"in\"")
        })
        .filter_map(|method| method.split('"').next())
        .collect();
    assert_eq!(takes, [TAKES_DESCRIPTOR]);
}

#[test]
fn long_answers_are_those_of_the_contract() {
    let contract = include_str!("../../../../dbus/org.animd.Animd1.xml");
    let standard = ["GetManagedObjects", "Introspect"];
    for method in HEAVY {
        assert!(
            standard.contains(&method) || contract.contains(&format!("<method name=\"{method}\"")),
            "{method}"
        );
    }
}

#[test]
fn one_users_calls_wait_and_anothers_do_not() -> Outcome {
    let gate = gate()?;
    let mut served = Vec::new();
    for _ in 0..UNDER_WAY[0] {
        served.extend(gate.judge(call(":1.1", "Ping", Flags::empty())?).through);
    }
    assert_eq!(served.len(), UNDER_WAY[0]);
    let next = gate.judge(call(":1.1", "Ping", Flags::empty())?);
    assert!(next.through.is_none() && next.outgoing.is_empty());
    assert!(gate.judge(call(":1.2", "Ping", Flags::empty())?).through.is_some());
    assert!(gate.next().is_none());
    answer(&gate, &served[0])?;
    assert!(gate.next().is_some());
    assert!(gate.next().is_none());
    Ok(())
}

#[test]
fn who_submits_much_can_still_look() -> Outcome {
    let gate = gate()?;
    for _ in 0..2 * UNDER_WAY[1] {
        gate.judge(with_descriptor(":1.1", "Submit")?);
    }
    for member in ["List", "GetAll"] {
        let through = gate.judge(call(":1.1", member, Flags::empty())?).through;
        assert_eq!(through.ok_or(member)?.header().member().map_or("", |m| m.as_str()), member);
    }
    Ok(())
}

#[test]
fn long_answers_wait_for_each_other_only() -> Outcome {
    let gate = gate()?;
    let mut served = Vec::new();
    for _ in 0..2 * UNDER_WAY[2] {
        served.extend(gate.judge(call(":1.1", "History", Flags::empty())?).through);
    }
    assert_eq!(served.len(), UNDER_WAY[2]);
    assert!(gate.judge(call(":1.1", "Ping", Flags::empty())?).through.is_some());
    answer(&gate, &served[0])?;
    let next = gate.next().ok_or("the next answer's turn")?;
    assert_eq!(next.header().member().map_or("", |member| member.as_str()), "History");
    Ok(())
}

#[test]
fn what_is_too_much_is_refused_in_words() -> Outcome {
    let gate = gate()?;
    let refused = gate.judge(with_descriptor(":1.1", "History")?);
    assert!(refused.through.is_none());
    let text: String = refused.outgoing[0].body().deserialize()?;
    assert_eq!(text, "History takes no file descriptor, and the call has 1");
    let mut refusals = Vec::new();
    for _ in 0..=MOST_DESCRIPTORS {
        refusals.extend(gate.judge(with_descriptor(":1.1", "Submit")?).outgoing);
    }
    assert_eq!(refusals.len(), 1);
    let header = refusals[0].header();
    assert_eq!(header.error_name().map_or("", |name| name.as_str()), BUSY);
    assert!(gate.judge(with_descriptor(":1.2", "Submit")?).through.is_some());
    // The waiting calls of a connection that leaves are dropped; those that are being served are not.
    gate.judge(signal(BUS, "NameOwnerChanged", &(":1.1", ":1.1", ""))?);
    assert_eq!(gate.lock().descriptors, UNDER_WAY[1] + 1);
    assert!(gate.next().is_none());
    assert_eq!(gate.uid(":1.1"), None);
    Ok(())
}

#[test]
fn a_stranger_waits_within_bounds() -> Outcome {
    let gate = gate()?;
    let question = gate.judge(with_descriptor(":1.9", "Submit")?).outgoing.remove(0);
    let mut refusals = Vec::new();
    for _ in 0..STRANGER_DESCRIPTORS {
        refusals.extend(gate.judge(with_descriptor(":1.9", "Submit")?).outgoing);
    }
    assert_eq!(refusals.len(), 1);
    // Nobody else can answer for the bus.
    let forged = Message::method_return(&question.header()).sender(":1.8").build(&0_u32)?;
    gate.judge(forged);
    assert_eq!(gate.uid(":1.9"), None);
    introduce(&gate, &question, 9)?;
    assert_eq!(std::iter::from_fn(|| gate.next()).count(), STRANGER_DESCRIPTORS);
    // A connection that has left before the bus answers leaves nothing behind.
    let question = gate.judge(with_descriptor(":1.7", "Submit")?).outgoing.remove(0);
    gate.judge(signal(BUS, "NameOwnerChanged", &(":1.7", ":1.7", ""))?);
    introduce(&gate, &question, 7)?;
    assert!(gate.next().is_none());
    let inner = gate.lock();
    assert_eq!((inner.stranger_bytes, inner.descriptors), (0, STRANGER_DESCRIPTORS));
    Ok(())
}

#[test]
fn a_call_without_an_answer_counts_too() -> Outcome {
    let gate = gate()?;
    let through = gate.judge(call(":1.1", "Pause", Flags::NO_REPLY_EXPECTED)?).through;
    let through = through.ok_or("it is served")?;
    assert!(!through.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED));
    let reply = Message::method_return(&through.header()).build(&())?;
    assert!(!gate.is_wanted(&reply));
    gate.answered(&reply);
    assert!(gate.lock().users.is_empty());
    Ok(())
}

#[tokio::test]
async fn only_the_bus_takes_the_name_away() -> Outcome {
    let gate = gate()?;
    gate.judge(signal(":1.6", "NameLost", &NAME)?);
    gate.judge(signal(BUS, "NameLost", &"org.example.Other")?);
    assert!(!*gate.name_lost.borrow());
    gate.judge(signal(BUS, "NameLost", &NAME)?);
    gate.name_lost().await;
    Ok(())
}

#[tokio::test]
async fn who_waits_learns_that_its_caller_has_left() -> Outcome {
    let gate = gate()?;
    let mut leaving = gate.leaving(":1.1");
    gate.judge(signal(BUS, "NameOwnerChanged", &(":1.1", ":1.1", ""))?);
    leaving.left().await;
    gate.leaving(":1.1").left().await;
    Ok(())
}

#[test]
fn a_refusal_with_the_number_of_a_call_under_way_ends_nothing() -> Outcome {
    let gate = gate()?;
    // A caller that wants no answer to one call may give its number to another, which is refused.
    let first = call(":1.1", "History", Flags::NO_REPLY_EXPECTED)?;
    assert!(gate.judge(first.clone()).through.is_some());
    let second = with_descriptor(":1.1", "History")?;
    let mut bytes = second.data().bytes().to_vec();
    // The third word of every message is its serial number.
    bytes[8..12].copy_from_slice(&first.data().bytes()[8..12]);
    let descriptors =
        second.data().fds().iter().map(zbus::Fd::try_to_owned).collect::<zbus::Result<Vec<_>>>()?;
    // SAFETY: these are the bytes and descriptors of a valid message, but for its serial number.
    let second = unsafe { Message::from_bytes(Data::new_fds(bytes, second.data().context(), descriptors))? };
    assert_eq!(second.primary_header().serial_num(), first.primary_header().serial_num());
    let judged = gate.judge(second);
    let [refusal] = &judged.outgoing[..] else { return Err("one refusal".into()) };
    assert!(judged.through.is_none() && gate.is_wanted(refusal));
    gate.answered(refusal);
    assert_eq!(gate.lock().under_way.len(), 1, "the first call is still under way");
    assert!(gate.lock().refusals.is_empty());
    answer(&gate, &first)?;
    assert!(gate.lock().under_way.is_empty());
    Ok(())
}

#[test]
fn whose_connection_the_bus_does_not_know_is_told() -> Outcome {
    let gate = Gate::new(10_000);
    let waiting = call(":1.9", "List", Flags::empty())?;
    let judged = gate.judge(waiting);
    let no = Message::error(&judged.outgoing[0].header(), "org.freedesktop.DBus.Error.Failed")
        .sender(BUS)
        .build(&"no")?;
    let refused = gate.judge(no);
    assert_eq!(refused.outgoing.len(), 1);
    assert!(gate.uid(":1.9").is_none() && gate.lock().callers.is_empty());
    Ok(())
}
