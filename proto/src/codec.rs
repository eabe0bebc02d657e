//! How messages are read and written where thousands of streams are open at once.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstDecoder};

/// What a stream's buffer begins with, in bytes. It grows with the first longer message.
const BUFFER: usize = 512;

/// Bytes written before others have their turn: tonic's own value.
const YIELD_THRESHOLD: usize = 32 * 1024;

/// Protobuf with buffers of half a kilobyte, of which each stream has two; tonic's own are
/// of 8 KiB, and most streams carry one message of 4 KiB an hour.
#[derive(Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = WholeMessages<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        WholeMessages(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD_THRESHOLD))
    }
}

/// Makes room for a message at once: while it is written the buffer would be copied with
/// each doubling.
#[derive(Debug)]
pub struct WholeMessages<T>(PhantomData<T>);

impl<T: Message> Encoder for WholeMessages<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_THRESHOLD)
    }
}
