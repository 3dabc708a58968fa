//! The image of the pods and of their sandboxes, made from this machine's own
//! files: the probe, its C library and the loader.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::host::output;

/// The image's name. No registry has it: it is never pulled.
pub const NAME: &str = "registry.e2e/probe:1";

/// The probe in the image.
pub const PROBE: &str = "/probe";

/// What libraries of the driver take from the system beside the C library.
const COMPANIONS: [&str; 6] = [
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libgcc_s.so.1",
];

const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// Where a container's loader looks first, on Debian; see the driver's mounts.
pub const LIBRARY_FOLDER: &str = if cfg!(target_arch = "aarch64") {
    "/usr/lib/aarch64-linux-gnu"
} else {
    "/usr/lib/x86_64-linux-gnu"
};

/// Makes the image's archive in `folder`, as `ctr images import` takes it.
pub fn archive(folder: &Path) -> PathBuf {
    let blobs = folder.join("image/blobs/sha256");
    fs::create_dir_all(&blobs).expect("create the image's folder");
    let root = root(folder);
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

/// The image's files: /lib and /lib64 lead to /usr, as in distributions today.
fn root(folder: &Path) -> PathBuf {
    let root = folder.join("image-root");
    for library_folder in ["usr/lib", "usr/lib64"] {
        fs::create_dir_all(root.join(library_folder)).expect("create a library folder");
    }
    symlink("usr/lib", root.join("lib")).expect("link /lib");
    symlink("usr/lib64", root.join("lib64")).expect("link /lib64");

    let source = folder.join("probe.c");
    let probe = root.join(PROBE.trim_start_matches('/'));
    fs::write(&source, include_str!("probe.c")).expect("write the probe's source");
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-Wall", "-Werror", "-o"]);
    output(compile.arg(&probe).arg(&source).arg("-ldl"));

    for needed in needed(&probe) {
        let place = needed.strip_prefix("/").expect("an absolute path");
        let place = match place.strip_prefix("usr") {
            Ok(_) => root.join(place),
            Err(_) => root.join("usr").join(place),
        };
        fs::create_dir_all(place.parent().expect("a folder")).expect("create its folder");
        fs::copy(&needed, place).expect("copy a library");
    }
    root
}

/// The loader and the libraries that the image takes from this machine.
fn needed(probe: &Path) -> Vec<PathBuf> {
    let listed = output(Command::new("ldd").arg(probe));
    let paths = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut needed: Vec<_> = paths.map(PathBuf::from).collect();
    let libc = needed.iter().find(|path| path.ends_with("libc.so.6"));
    let libc = libc.unwrap_or_else(|| panic!("no C library of GNU's: {listed}"));
    let folder = libc.parent().expect("a folder").to_path_buf();
    let companions = COMPANIONS.iter().map(|name| folder.join(name));
    needed.extend(companions.filter(|path| path.exists()));
    needed
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
