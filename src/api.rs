//! The kubelet's gRPC interfaces, generated from `proto/`.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// The device plugin API.
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// The pod-resources API.
pub mod podresources {
    tonic::include_proto!("v1");
}
