//! The service's own socket to the bus. Every message passes the [`Gate`] before the library gets it, because the
//! library reads whatever comes, holds it with its descriptors, and starts a task for each call.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::socket::{ReadHalf, Split, WriteHalf};
use zbus::connection::{Builder, Socket};
use zbus::export::async_trait::async_trait;
use zbus::{Address, Message};

use super::gate::Gate;
use crate::error::{Error, Result};

/// The most descriptors that the kernel lets one message carry (`SCM_MAX_FD`).
const MOST_DESCRIPTORS: usize = 253;

/// The most messages that the gate has let through and the library has not taken.
const ADMITTED: usize = 64;

/// Begins a connection to the session bus or the system bus whose messages all pass `gate`. The gate's own messages go
/// to `outgoing`.
///
/// # Errors
/// [`Error::Config`] for an address that is not a Unix socket: no other socket passes descriptors.
pub fn connect(user: bool, gate: &Arc<Gate>, outgoing: mpsc::Sender<Message>) -> Result<Builder<'static>> {
    let address = if user { Address::session() } else { Address::system() }?;
    let unix = match address.transport() {
        Transport::Unix(unix) => match unix.path() {
            UnixSocket::File(path) => Some(SocketAddr::from_pathname(path)),
            UnixSocket::Abstract(name) => Some(SocketAddr::from_abstract_name(name.as_bytes())),
            _ => None,
        },
        _ => None,
    };
    let unix = unix.ok_or_else(|| {
        Error::config(format!(
            "the bus address `{address}` is not that of a Unix socket (unix:path=... or unix:abstract=...); other buses \
             pass no file descriptors, and animd takes pictures by them"
        ))
    })?;
    let failed = |e: io::Error| zbus::Error::Connection(Arc::new(e), Box::new(address.clone()));
    // Connecting to a Unix socket does not wait.
    let stream = unix.and_then(|unix| StdUnixStream::connect_addr(&unix)).map_err(failed)?;
    stream.set_nonblocking(true).map_err(failed)?;
    let stream = UnixStream::from_std(stream).map_err(failed)?;
    Ok(Builder::socket(Gated { stream, gate: gate.clone(), outgoing }))
}

struct Gated {
    stream: UnixStream,
    gate: Arc<Gate>,
    outgoing: mpsc::Sender<Message>,
}

impl Socket for Gated {
    type ReadHalf = GatedReader;
    type WriteHalf = GatedWriter;

    fn split(self) -> Split<GatedReader, GatedWriter> {
        let (read, write) = self.stream.into_split();
        let reader = GatedReader {
            source: Source::Socket(Reader(read)),
            gate: self.gate.clone(),
            outgoing: self.outgoing,
        };
        Split::new(reader, GatedWriter { socket: Writer(write), gate: self.gate })
    }
}

/// The reading half of the bare socket.
#[derive(Debug)]
struct Reader(OwnedReadHalf);

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let stream: &UnixStream = self.0.as_ref();
        stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let mut into = [IoSliceMut::new(buffer)];
                // The descriptors are closed in programs that the service starts.
                let got = recvmsg(stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
                let mut descriptors = Vec::new();
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        descriptors.extend(rights);
                    }
                }
                if got.flags.contains(ReturnFlags::CTRUNC) {
                    return Err(io::Error::other(
                        "a message's descriptors were lost: too many files are open",
                    ));
                }
                Ok((got.bytes, descriptors))
            })
            .await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

/// The writing half of the bare socket.
#[derive(Debug)]
struct Writer(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let stream: &UnixStream = self.0.as_ref();
        stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
                }
                Ok(sendmsg(stream, &[IoSlice::new(buffer)], &mut ancillary, SendFlags::NOSIGNAL)?)
            })
            .await
    }

    async fn close(&mut self) -> io::Result<()> {
        let stream: &UnixStream = self.0.as_ref();
        Ok(rustix::net::shutdown(stream, rustix::net::Shutdown::Both)?)
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

/// The reading half that the library sees: it passes on what the gate lets through.
#[derive(Debug)]
struct GatedReader {
    source: Source,
    gate: Arc<Gate>,
    outgoing: mpsc::Sender<Message>,
}

/// The origin of the library's messages.
#[derive(Debug)]
enum Source {
    /// The socket, while the library greets the bus.
    Socket(Reader),
    /// A task that reads the socket and passes each message to the gate. The library's reader could not do this itself:
    /// it also has to serve calls that have waited, and a half-read message cannot be left.
    Task(mpsc::Receiver<zbus::Result<Message>>),
    /// None, in the moment between the other two.
    Nowhere,
}

/// Reads messages and passes them to the gate until the connection ends. A refused message is dropped here, which
/// closes its descriptors.
async fn admit(
    mut socket: Reader,
    (mut bytes, mut descriptors): (Vec<u8>, Vec<OwnedFd>),
    gate: Arc<Gate>,
    outgoing: mpsc::Sender<Message>,
    admitted: mpsc::Sender<zbus::Result<Message>>,
) {
    for number in 1.. {
        let message = match socket.receive_message(number, &mut bytes, &mut descriptors).await {
            Ok(message) => message,
            Err(e) => {
                _ = admitted.send(Err(e)).await;
                return;
            }
        };
        let judged = gate.judge(message);
        for said in judged.outgoing {
            // While the bus does not take the gate's messages, nothing more is read: callers wait, and memory does not
            // fill up.
            if outgoing.send(said).await.is_err() {
                return;
            }
        }
        if let Some(message) = judged.through
            && admitted.send(Ok(message)).await.is_err()
        {
            return;
        }
    }
}

#[async_trait]
impl ReadHalf for GatedReader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        match &mut self.source {
            Source::Socket(socket) => socket.recvmsg(buffer).await,
            Source::Task(_) | Source::Nowhere => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Sequence numbers of messages grow, as the library expects, except that a call which has waited keeps its own.
    /// The library uses them only to order signals and answers.
    async fn receive_message(
        &mut self,
        _number: u64,
        bytes: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        let over = || Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        if let Source::Socket(_) = self.source
            && let Source::Socket(socket) = std::mem::replace(&mut self.source, Source::Nowhere)
        {
            let (admitted, messages) = mpsc::channel(ADMITTED);
            let read = (std::mem::take(bytes), std::mem::take(descriptors));
            tokio::spawn(admit(socket, read, self.gate.clone(), self.outgoing.clone(), admitted));
            self.source = Source::Task(messages);
        }
        let Source::Task(messages) = &mut self.source else { return over() };
        loop {
            if let Some(waited) = self.gate.next() {
                return Ok(waited);
            }
            tokio::select! {
                () = self.gate.freed() => {}
                message = messages.recv() => return message.unwrap_or_else(over),
            }
        }
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

/// The writing half that the library sees: it tells the gate which calls have been answered.
#[derive(Debug)]
struct GatedWriter {
    socket: Writer,
    gate: Arc<Gate>,
}

#[async_trait]
impl WriteHalf for GatedWriter {
    async fn sendmsg(&mut self, buffer: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.socket.sendmsg(buffer, descriptors).await
    }

    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        if self.gate.is_wanted(message) {
            self.socket.send_message(message).await?;
        }
        self.gate.answered(message);
        Ok(())
    }

    async fn close(&mut self) -> io::Result<()> {
        self.socket.close().await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}
