//! Compiles the protos under `proto/` without a system `protoc`.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "maille/facts/v1/facts.proto",
        "maille/facts/v1/dump.proto",
        "maille/flows/v1/flows.proto",
        "envoy/service/auth/v3/external_auth.proto",
        "envoy/service/discovery/v3/discovery.proto",
        "envoy/service/secret/v3/secret.proto",
        "istio/v1/auth/ca.proto",
        "maille/identity/v1/identity.proto",
        "spiffe/workload.proto",
    ];
    let descriptors = protox::compile(files, [&root])?;
    // Protobuf's JSON for the facts, which proxies show on their admin port. A reader may be of another version.
    let mut of_facts = descriptors.clone();
    // The Workload API has no package, and the builder cannot do without.
    of_facts.file.retain(|file| file.package.is_some());
    pbjson_build::Builder::new()
        .register_descriptors(&of_facts.encode_to_vec())?
        .btree_map([".maille.facts.v1"])
        .ignore_unknown_fields()
        .build(&[".maille.facts.v1"])?;
    // Maps in order, so that equal facts have equal bytes: a version is a hash of them.
    tonic_prost_build::configure()
        .bytes(".maille.facts.v1")
        .btree_map(".maille.facts.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
