//! Calls whose messages stay bytes: what a kubelet's decoding takes is not the
//! plugin's time.

use std::time::{Duration, Instant};

use prost::bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Calls methods of the device plugin API.
pub(crate) struct Caller {
    grpc: Grpc<Channel>,
}

impl Caller {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            grpc: Grpc::new(channel),
        }
    }

    /// The answer to an encoded request, and how long it took.
    pub(crate) async fn call(
        &mut self,
        method: &'static str,
        request: Bytes,
    ) -> Result<(Duration, Bytes), Status> {
        let path = PathAndQuery::from_static(method);
        let request = Request::new(request);
        let begin = Instant::now();
        let ready = self.grpc.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = self.grpc.unary(request, path, Raw).await?;
        Ok((begin.elapsed(), answer.into_inner()))
    }
}

#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
