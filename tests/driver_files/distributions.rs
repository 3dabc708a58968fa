//! What distributions' packages make.

use std::fs;
use std::path::Path;

use super::{Layout, Lists, decoys};
use crate::kit::{Kit, MULTIARCH, Part, entries};
use crate::tree::Tree;

/// Debian's packages as they are, without the links that configuring them makes.
pub const DEBIAN_UNPACKED: Layout = Layout::new("debian-unpacked", debian_unpacked, Lists::Default);

/// Debian's packages, configured. Known from the packages, and for the links
/// from their scripts (debian/nvidia-alternative.postinst.in,
/// glx-alternative-nvidia's).
pub const DEBIAN: Layout = Layout::new("debian", debian, Lists::Every);

/// Known from the packages' lists of files (debian/*.install and *.links of
/// nvidia-graphics-drivers, in pop-os/nvidia-graphics-drivers).
pub const UBUNTU: Layout = Layout::new("ubuntu", ubuntu, Lists::All);

/// Known from NVIDIA/yum-packaging-nvidia-driver, nvidia-driver.spec. Fedora's,
/// Amazon's and Flatcar's newer packages have the same folders.
pub const RED_HAT: Layout = Layout::new("red-hat", red_hat, Lists::All);

/// Known from openSUSE/nvidia-driver-G06, nvidia-video-G06.spec.
pub const SUSE: Layout = Layout::new("suse", suse, Lists::Newest);

// === Debian ===

fn debian_unpacked(kit: &Kit, tree: &Tree) {
    mirror(tree, &kit.root, Path::new(""), &|path| path.into());
}

fn debian(kit: &Kit, tree: &Tree) {
    merged(tree);
    mirror(
        tree,
        &kit.root,
        Path::new(""),
        &|path| match path.strip_prefix("lib/") {
            Some(rest) => format!("usr/lib/{rest}"),
            None => path.into(),
        },
    );
    let flavour = flavour(kit);
    let multiarch = MULTIARCH.trim_start_matches("usr/lib/");
    for path in entries(&kit.root.join(MULTIARCH).join("nvidia").join(&flavour)) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let sub = match name {
            // It has a second link, of the second alternative.
            "libnvidia-cfg.so.1" => "/nvidia",
            "libvdpau_nvidia.so.1" => "/vdpau",
            "nvidia-drm_gbm.so" => "/gbm",
            _ if path.is_symlink() || name == "libnvidia-api.so.1" => "",
            _ => continue,
        };
        alternative(
            tree,
            &format!("{MULTIARCH}{sub}/{name}"),
            &format!("nvidia--{name}-{multiarch}"),
            &format!("{MULTIARCH}/nvidia/{flavour}/{name}"),
        );
    }
    let glx = format!("{MULTIARCH}/libnvidia-cfg.so.1");
    let master = format!("{MULTIARCH}/nvidia/libnvidia-cfg.so.1");
    alternative(tree, &glx, "glx--libnvidia-cfg.so.1", &master);
    debian_programs(tree, &flavour);
    decoys::glvnd(tree, MULTIARCH);
    decoys::mesa(tree, MULTIARCH);
}

/// The links to what is no library.
fn debian_programs(tree: &Tree, flavour: &str) {
    let own = format!("usr/lib/nvidia/{flavour}");
    let optix = format!("{MULTIARCH}/nvidia/{flavour}/nvoptix.bin");
    let configuration = format!("etc/nvidia/{flavour}/nvidia-drm-outputclass.conf");
    let of_nvidia = [
        ("usr/bin/nvidia-smi", format!("{own}/nvidia-smi")),
        (
            "usr/bin/nvidia-debugdump",
            format!("{own}/nvidia-debugdump"),
        ),
        (
            "usr/lib/nvidia/nvidia_drv.so",
            format!("{own}/nvidia_drv.so"),
        ),
        (
            "usr/lib/nvidia/libglxserver_nvidia.so",
            format!("{own}/libglxserver_nvidia.so"),
        ),
        ("usr/share/nvidia/nvoptix.bin", optix),
        ("etc/nvidia/nvidia-drm-outputclass.conf", configuration),
    ];
    let of_glx = [
        (
            "usr/lib/xorg/modules/drivers/nvidia_drv.so",
            "usr/lib/nvidia/nvidia_drv.so",
        ),
        (
            "usr/lib/xorg/modules/extensions/libglxserver_nvidia.so",
            "usr/lib/nvidia/libglxserver_nvidia.so",
        ),
        (
            "usr/share/X11/xorg.conf.d/nvidia-drm-outputclass.conf",
            "etc/nvidia/nvidia-drm-outputclass.conf",
        ),
    ];
    let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    for (link, file) in of_nvidia {
        if tree.here().join(&file).exists() {
            alternative(tree, link, &format!("nvidia--{}", name(link)), &file);
        }
    }
    for (link, file) in of_glx {
        alternative(tree, link, &format!("glx--{}", name(link)), file);
    }
    alternative(tree, "usr/lib/nvidia/nvidia", "nvidia", &own);
}

/// A link by way of `/etc/alternatives`, both absolute.
fn alternative(tree: &Tree, link: &str, name: &str, file: &str) {
    tree.link(format!("etc/alternatives/{name}"), format!("/{file}"));
    tree.link(link, format!("/etc/alternatives/{name}"));
}

/// `current`, or `tesla-470`.
pub fn flavour(kit: &Kit) -> String {
    let folders = entries(&kit.root.join("usr/lib/nvidia"));
    let name = folders[0].file_name().unwrap();
    name.to_str().unwrap().to_owned()
}

/// All files and links but documentation, at the places that `place` gives. What
/// another driver has there stays.
fn mirror(tree: &Tree, root: &Path, folder: &Path, place: &dyn Fn(&str) -> String) {
    const LEFT_OUT: [&str; 4] = ["usr/share/doc", "usr/share/bug", "usr/share/man", "var"];
    for path in entries(&root.join(folder)) {
        let relative = path.strip_prefix(root).unwrap();
        let text = relative.to_str().unwrap();
        if LEFT_OUT.contains(&text) {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            mirror(tree, root, relative, place);
        } else if tree.here().join(place(text)).symlink_metadata().is_ok() {
            continue;
        } else if path.is_symlink() {
            tree.link(place(text), fs::read_link(&path).unwrap());
        } else {
            tree.place(&path, place(text));
        }
    }
}

// === Others ===

/// `/bin`, `/lib` and their like are links to those in `/usr`.
pub fn merged(tree: &Tree) {
    for folder in ["bin", "lib", "lib64", "sbin"] {
        tree.folder(format!("usr/{folder}"));
        tree.link(folder, format!("usr/{folder}"));
    }
}

fn ubuntu(kit: &Kit, tree: &Tree) {
    merged(tree);
    let xorg = format!("{MULTIARCH}/nvidia/xorg");
    tree.parts(kit, Part::Library, MULTIARCH)
        .sonames(MULTIARCH)
        .dot_so(
            MULTIARCH,
            &[
                "libcuda",
                "libnvcuvid",
                "libnvidia-allocator",
                "libnvidia-encode",
                "libnvidia-ml",
                "libnvidia-opticalflow",
                "libnvidia-ptxjitcompiler",
            ],
        )
        .link(
            format!("{MULTIARCH}/gbm/nvidia-drm_gbm.so"),
            "../libnvidia-allocator.so.1",
        )
        .parts(kit, Part::Vdpau, &format!("{MULTIARCH}/vdpau"))
        .sonames(&format!("{MULTIARCH}/vdpau"))
        .dot_so(&format!("{MULTIARCH}/vdpau"), &["libvdpau_nvidia"])
        .parts(kit, Part::XDriver, &xorg)
        .parts(kit, Part::XExtension, &xorg)
        .link(
            format!("{xorg}/libglxserver_nvidia.so"),
            format!("libglxserver_nvidia.so.{}", kit.version),
        )
        .write("usr/share/X11/xorg.conf.d/10-nvidia.conf", X_CONFIGURATION)
        .parts(kit, Part::Wine, &format!("{MULTIARCH}/nvidia/wine"))
        .parts(kit, Part::VulkanIcd, "usr/share/vulkan/icd.d");
    everywhere(kit, tree);
    decoys::for_32_bits(kit, tree, "usr/lib/i386-linux-gnu");
    decoys::glvnd(tree, MULTIARCH);
    decoys::mesa(tree, MULTIARCH);
}

const X_CONFIGURATION: &str = "Section \"OutputClass\"\nEndSection\n";

/// What all packages put to the same places.
fn everywhere(kit: &Kit, tree: &Tree) {
    let firmware = format!("usr/lib/firmware/nvidia/{}", kit.version);
    tree.parts(kit, Part::Program, "usr/bin")
        .parts(kit, Part::Firmware, &firmware)
        .parts(kit, Part::OpenCl, "etc/OpenCL/vendors")
        .parts(kit, Part::VulkanLayer, "usr/share/vulkan/implicit_layer.d")
        .parts(kit, Part::EglVendor, "usr/share/glvnd/egl_vendor.d")
        .parts(
            kit,
            Part::EglPlatform,
            "usr/share/egl/egl_external_platform.d",
        )
        .parts(kit, Part::Optix, "usr/share/nvidia");
}

/// The folders of those with `/usr/lib64`, but for X.Org's and GBM's links.
fn lib64(kit: &Kit, tree: &Tree) {
    merged(tree);
    tree.parts(kit, Part::Library, "usr/lib64")
        .sonames("usr/lib64")
        .dot_so("usr/lib64", &["libcuda", "libnvcuvid", "libnvidia-encode"])
        .parts(kit, Part::Vdpau, "usr/lib64/vdpau")
        .sonames("usr/lib64/vdpau")
        .parts(kit, Part::XDriver, "usr/lib64/xorg/modules/drivers")
        .parts(kit, Part::Wine, "usr/lib64/nvidia/wine");
    for icd in kit.parts(Part::VulkanIcd) {
        let text = fs::read_to_string(&icd.real).unwrap();
        let name = format!("nvidia_icd.{}.json", std::env::consts::ARCH);
        tree.write(
            format!("usr/share/vulkan/icd.d/{name}"),
            text.replace("libGLX_nvidia", "/usr/lib64/libGLX_nvidia"),
        );
    }
    everywhere(kit, tree);
    decoys::for_32_bits(kit, tree, "usr/lib");
    decoys::glvnd(tree, "usr/lib64");
    decoys::mesa(tree, "usr/lib64");
}

fn red_hat(kit: &Kit, tree: &Tree) {
    lib64(kit, tree);
    for module in kit.parts(Part::XExtension) {
        let folder = "usr/lib64/xorg/modules/extensions";
        tree.place(&module.real, format!("{folder}/libglxserver_nvidia.so"));
    }
    tree.write("etc/X11/xorg.conf.d/10-nvidia.conf", X_CONFIGURATION);
    tree.link(
        "usr/lib64/gbm/nvidia-drm_gbm.so",
        format!("../libnvidia-allocator.so.{}", kit.version),
    );
}

fn suse(kit: &Kit, tree: &Tree) {
    lib64(kit, tree);
    let extensions = "usr/lib64/xorg/modules/extensions";
    tree.parts(kit, Part::XExtension, extensions).link(
        format!("{extensions}/libglxserver_nvidia.so"),
        format!("libglxserver_nvidia.so.{}", kit.version),
    );
    for folder in ["usr/lib64", "usr/lib"] {
        tree.link(
            format!("{folder}/gbm/nvidia-drm_gbm.so"),
            "../libnvidia-allocator.so.1",
        );
    }
    tree.link("usr/lib64/libvdpau_nvidia.so", "vdpau/libvdpau_nvidia.so.1");
    tree.link("usr/lib64/libnvidia-ml.so", "libnvidia-ml.so.1");
    tree.write(
        "usr/share/vulkan/icd.d/nvidia_icd.i686.json",
        r#"{ "ICD": { "library_path": "/usr/lib/libGLX_nvidia.so.0" } }"#,
    );
}
