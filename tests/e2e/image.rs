//! The image of the pods and of their sandboxes: the probe, the plugin, and the C
//! library of both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::probe::{self, PROBE};
use crate::common::system::output;

/// The image's name. No registry has it: it is never pulled.
pub const NAME: &str = "registry.e2e/probe:1";

/// Where it has the plugin.
pub const PLUGIN: &str = "/gpu-device-plugin";

const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// Makes the image's archive in `folder`, as `ctr images import` takes it.
pub fn archive(folder: &Path) -> PathBuf {
    let blobs = folder.join("image/blobs/sha256");
    fs::create_dir_all(&blobs).expect("create the image's folder");
    let program = folder.join("probe");
    probe::compile(&program, None);
    let root = folder.join("image-root");
    probe::root(&root, &program);
    let plugin = Path::new(env!("CARGO_BIN_EXE_gpu-device-plugin"));
    probe::add_libraries(&root, plugin);
    fs::copy(plugin, root.join(&PLUGIN[1..])).expect("copy the plugin");
    let layer = folder.join("layer.tar");
    tar(&root, &layer);
    let layer = blob(&blobs, &layer);
    let config = json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "Entrypoint": [PROBE],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": json_blob(&blobs, &config, "application/vnd.oci.image.config.v1+json"),
        "layers": [described(layer, "application/vnd.oci.image.layer.v1.tar")],
    });
    let mut manifest = json_blob(
        &blobs,
        &manifest,
        "application/vnd.oci.image.manifest.v1+json",
    );
    manifest["annotations"] = json!({"io.containerd.image.name": NAME});
    manifest["platform"] = json!({"architecture": ARCHITECTURE, "os": "linux"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    let image = folder.join("image");
    write(&image.join("index.json"), &index);
    write(
        &image.join("oci-layout"),
        &json!({"imageLayoutVersion": "1.0.0"}),
    );
    let archive = folder.join("image.tar");
    tar(&image, &archive);
    archive
}

fn tar(folder: &Path, archive: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--numeric-owner", "--owner=0", "--group=0"]);
    tar.arg("--file").arg(archive);
    output(tar.arg("--directory").arg(folder).arg("."));
}

/// Moves a file among the blobs.
fn blob(blobs: &Path, file: &Path) -> Value {
    let size = fs::metadata(file).expect("a blob").len();
    let sum = output(Command::new("sha256sum").arg(file));
    let sum = sum.split(' ').next().expect("a sum");
    fs::rename(file, blobs.join(sum)).expect("move a blob");
    json!({"digest": format!("sha256:{sum}"), "size": size})
}

fn json_blob(blobs: &Path, value: &Value, media_type: &str) -> Value {
    let file = blobs.join("new");
    write(&file, value);
    described(blob(blobs, &file), media_type)
}

fn described(mut blob: Value, media_type: &str) -> Value {
    blob["mediaType"] = media_type.into();
    blob
}

fn write(file: &Path, value: &Value) {
    fs::write(file, value.to_string()).expect("write a part of the image");
}
