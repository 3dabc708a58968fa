//! The kubelet's gRPC interfaces, generated from `proto/`.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// The device plugin API.
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// The device plugin API as it is served here: of Allocate's answer the parts are bytes
/// already.
pub mod served {
    include!(concat!(env!("OUT_DIR"), "/served/v1beta1.rs"));
}

/// A [`v1beta1::AllocateResponse`] whose messages are encoded already: on the wire one
/// within another is its bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EncodedAllocateResponse {
    /// A [`v1beta1::ContainerAllocateResponse`] each.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub container_responses: Vec<Vec<u8>>,
}

/// The pod-resources API.
pub mod podresources {
    tonic::include_proto!("v1");
}
