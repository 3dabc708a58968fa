//! Generates the kubelet's gRPC interfaces from `proto/`, without protoc.

use std::error::Error;

const PROTOS: [&str; 2] = ["proto/deviceplugin.proto", "proto/podresources.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    // The same answer is the same bytes: a hash map would be written in any order.
    let configured = tonic_prost_build::configure().btree_map(".v1beta1");
    configured.compile_fds(descriptors)?;
    Ok(())
}
