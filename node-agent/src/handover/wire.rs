//! Messages and descriptors between two agents of a node, within bounds and deadlines.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zeroize::Zeroizing;

/// The longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = 16 * 1024;

/// The most descriptors beside one message.
pub(super) const MAX_DESCRIPTORS: usize = 8;

/// How long each message may take.
pub(super) const MESSAGE_DEADLINE: Duration = Duration::from_secs(10);

/// A message that can't be had or sent.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke, or the other side took too long.
    #[error("the other agent does not answer: {0}")]
    Io(#[from] io::Error),
    /// The other side announced more than [`MAX_MESSAGE`].
    #[error("the other agent sends a message of {0} bytes; {MAX_MESSAGE} are the most")]
    TooLong(usize),
    /// More descriptors than there may be.
    #[error("the other agent sends more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// Not the message that was expected.
    #[error("the other agent's message can't be read: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// One end of a conversation. Blocks: not for async threads.
#[derive(Debug)]
pub(super) struct Wire(UnixStream);

impl Wire {
    /// Sets the deadlines.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(MESSAGE_DEADLINE))?;
        stream.set_write_timeout(Some(MESSAGE_DEADLINE))?;
        Ok(Self(stream))
    }

    /// The connection itself.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Another deadline for the messages that are awaited from now on.
    pub(super) fn wait_for(&self, deadline: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(deadline))
    }

    /// Sends a message, and descriptors with its first byte.
    pub(super) fn send(
        &mut self,
        message: &impl Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let bytes = framed(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(WireError::TooManyDescriptors);
        }
        let sent = sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map_err(io::Error::from)?;
        self.0.write_all(bytes.get(sent..).unwrap_or_default())?;
        Ok(())
    }

    /// Receives a message, and the descriptors that came with it.
    pub(super) fn receive<M: Message + Default>(&mut self) -> Result<(M, Vec<OwnedFd>), WireError> {
        let mut length = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut length)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(io::Error::from)?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        // Closed with the error: the kernel has dropped what had no room.
        if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
            return Err(WireError::TooManyDescriptors);
        }
        self.0
            .read_exact(length.get_mut(received.bytes..).unwrap_or_default())?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(WireError::TooLong(length));
        }
        // Of the offer this is a key.
        let mut bytes = Zeroizing::new(vec![0; length]);
        self.0.read_exact(&mut bytes)?;
        Ok((M::decode(bytes.as_slice())?, descriptors))
    }
}

fn framed(message: &impl Message) -> Result<Zeroizing<Vec<u8>>, WireError> {
    let length = message.encoded_len();
    let announced = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_MESSAGE)
        .ok_or(WireError::TooLong(length))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 + length));
    bytes.extend_from_slice(&announced.to_be_bytes());
    message.encode_raw(&mut *bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::AsFd;

    use citadel_proto::agent::{Offer, TakeOverRequest};

    use super::*;

    fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Wire::new(ours).unwrap(), theirs)
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (ours, theirs) = pair();
        let (mut ours, mut theirs) = (ours, Wire::new(theirs).unwrap());
        let (mut end, other_end) = UnixStream::pair().unwrap();
        let mut offer = Offer::default();
        offer.version = "1".repeat(3000);
        ours.send(&offer, &[other_end.as_fd()]).unwrap();
        drop(other_end);
        let (received, mut descriptors) = theirs.receive::<Offer>().unwrap();
        assert_eq!(received.version, offer.version);
        assert_eq!(descriptors.len(), 1);
        let mut handed = UnixStream::from(descriptors.remove(0));
        handed.write_all(b"x").unwrap();
        drop(handed);
        let mut bytes = Vec::new();
        end.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"x");
    }

    #[test]
    fn what_is_too_long_too_short_or_nonsense_is_refused() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let refused = ours.receive::<TakeOverRequest>().unwrap_err();
        assert!(matches!(refused, WireError::TooLong(_)), "{refused}");

        let (mut ours, mut theirs) = pair();
        theirs.write_all(&[0, 0, 0, 3, 0xff, 0xff, 0xff]).unwrap();
        let refused = ours.receive::<TakeOverRequest>().unwrap_err();
        assert!(matches!(refused, WireError::Malformed(_)), "{refused}");

        for part in [&[][..], &[0, 0], &[0, 0, 0, 9, 1]] {
            let (mut ours, mut theirs) = pair();
            theirs.write_all(part).unwrap();
            drop(theirs);
            let refused = ours.receive::<TakeOverRequest>().unwrap_err();
            assert!(matches!(refused, WireError::Io(_)), "{refused}");
        }
        let mut long = Offer::default();
        long.version = "x".repeat(MAX_MESSAGE);
        let (mut ours, _theirs) = pair();
        assert!(matches!(
            ours.send(&long, &[]).unwrap_err(),
            WireError::TooLong(_)
        ));
    }

    #[test]
    fn who_sends_nothing_is_not_waited_for() {
        let (mut ours, _theirs) = pair();
        ours.wait_for(Duration::from_millis(20)).unwrap();
        let refused = ours.receive::<TakeOverRequest>().unwrap_err();
        assert!(matches!(refused, WireError::Io(_)), "{refused}");
    }
}
