//! What systems have that are made as one image.

use std::fs;
use std::path::Path;

use super::{Layout, Lists, decoys, distributions};
use crate::common::system::skip;
use crate::kit::{Kit, Part, PartFile, entries};
use crate::tree::Tree;

/// Known from NixOS/nixpkgs: pkgs/os-specific/linux/nvidia-x11/builder.sh,
/// nixos/modules/hardware/{graphics,video/nvidia}.nix.
pub const NIXOS: Layout = Layout::new("nixos", nixos, Lists::Newest);

/// Talos until 1.12. Known from siderolabs/extensions, release-1.12:
/// misc/glibc/pkg.yaml, nvidia-pkgs/production/pkg.yaml.
pub const TALOS: Layout = Layout::new("talos", talos, Lists::Newest);

/// Talos since 1.13. Known from the same on main.
pub const TALOS_1_13: Layout = Layout::new("talos-1.13", talos_1_13, Lists::Newest);

/// Known from bottlerocket-os/bottlerocket-core-kit:
/// packages/filesystem/filesystem.spec and kmod-6.1-nvidia/kmod-6.1-nvidia.spec.
pub const BOTTLEROCKET: Layout = Layout::new("bottlerocket", bottlerocket, Lists::Default);

/// Flatcar that builds its driver. Known from flatcar/scripts,
/// x11-drivers/nvidia-drivers-service/files/bin/setup-nvidia.
pub const FLATCAR: Layout = Layout::new("flatcar", flatcar, Lists::Default);

// === NixOS ===

/// A package's folder in the store, with a hash.
fn store(package: &str) -> String {
    format!("nix/store/0v3wlqs5a9hx1kqmz7rbdgn2jy8fc4ip-{package}")
}

fn nixos(kit: &Kit, tree: &Tree) {
    let out = store(&format!("nvidia-x11-{}-6.12.30", kit.version));
    let bin = format!("{out}-bin");
    let lib = format!("{out}/lib");
    for file in kit.parts(Part::Library) {
        if !file.name.starts_with("libOpenCL") {
            tree.part(file, &lib);
        }
    }
    tree.sonames(&lib)
        .dot_so(&lib, &["libcuda", "libnvidia-allocator", "libnvidia-ml"])
        .parts(kit, Part::Vdpau, &format!("{lib}/vdpau"))
        .sonames(&format!("{lib}/vdpau"))
        .link(
            format!("{lib}/gbm/nvidia-drm_gbm.so"),
            format!("/{lib}/libnvidia-allocator.so"),
        )
        .parts(kit, Part::Wine, &format!("{lib}/nvidia/wine"))
        .parts(kit, Part::Optix, &format!("{out}/share/nvidia"));
    vendors(kit, tree, &out);
    tree.parts(
        kit,
        Part::XDriver,
        &format!("{bin}/lib/xorg/modules/drivers"),
    )
    .parts(
        kit,
        Part::XExtension,
        &format!("{bin}/lib/xorg/modules/extensions"),
    );
    for program in kit.parts(Part::Program) {
        let package = match program.name.as_str() {
            "nvidia-persistenced" => store("nvidia-persistenced"),
            "nvidia-modprobe" | "nvidia-xconfig" => continue,
            _ => bin.clone(),
        };
        tree.part(program, &format!("{package}/origBin"))
            .write(format!("{package}/bin/{}", program.name), patched(program))
            .link(
                format!("{}/bin/{}", store("system-path"), program.name),
                format!("/{package}/bin/{}", program.name),
            );
    }
    opengl_driver(tree, &out);
    let firmware = format!("lib/firmware/nvidia/{}", kit.version);
    tree.parts(kit, Part::Firmware, &format!("{out}-firmware/{firmware}"))
        .link(
            format!("{}/{firmware}", store("firmware")),
            format!("/{out}-firmware/{firmware}"),
        )
        .link("run/current-system", format!("/{}", store("nixos-system")))
        .link(
            format!("{}/sw", store("nixos-system")),
            format!("/{}", store("system-path")),
        )
        .link(
            format!("{}/firmware", store("nixos-system")),
            format!("/{}/lib/firmware", store("firmware")),
        );
}

/// The files by which loaders find the vendor's libraries: with whole paths.
fn vendors(kit: &Kit, tree: &Tree, out: &str) {
    for (part, folder) in [
        (Part::OpenCl, "etc/OpenCL/vendors"),
        (Part::VulkanIcd, "share/vulkan/icd.d"),
        (Part::VulkanLayer, "share/vulkan/implicit_layer.d"),
        (Part::EglVendor, "share/glvnd/egl_vendor.d"),
        (Part::EglPlatform, "share/egl/egl_external_platform.d"),
    ] {
        for file in kit.parts(part) {
            let mut text = fs::read_to_string(&file.real).unwrap();
            for library in ["libnvidia-", "libGLX_nvidia", "libEGL_nvidia"] {
                text = text.replace(library, &format!("/{out}/lib/{library}"));
            }
            let name = match part {
                Part::VulkanIcd => format!("nvidia_icd.{}.json", std::env::consts::ARCH),
                _ => file.name.clone(),
            };
            tree.write(format!("{out}/{folder}/{name}"), text);
        }
    }
}

/// A folder of links to the driver's and Mesa's files, which
/// `/run/opengl-driver` leads to.
fn opengl_driver(tree: &Tree, out: &str) {
    let environment = store("graphics-drivers");
    let mesa = store("mesa-25.0.6");
    decoys::mesa(tree, &format!("{mesa}/lib"));
    for package in [out, mesa.as_str()] {
        for path in entries(&tree.here().join(package).join("lib")) {
            let name = path.file_name().unwrap().to_str().unwrap();
            tree.link(
                format!("{environment}/lib/{name}"),
                format!("/{package}/lib/{name}"),
            );
        }
    }
    for folder in ["etc", "share"] {
        tree.link(
            format!("{environment}/{folder}"),
            format!("/{out}/{folder}"),
        );
    }
    tree.link("run/opengl-driver", format!("/{environment}"));
}

/// The program with a loader in the store, as patchelf writes it: the longer
/// name at the end.
fn patched(program: &PartFile) -> Vec<u8> {
    const PT_INTERP: u32 = 3;
    let mut bytes = fs::read(&program.real).unwrap();
    let loader = format!("/{}/lib/ld-linux-x86-64.so.2\0", store("glibc-2.40-66"));
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let headers = word(&bytes, 32) as usize;
    let count = u16::from_le_bytes(bytes[56..58].try_into().unwrap());
    let mut segments = (0..usize::from(count)).map(|n| headers + n * 56);
    let interpreter = segments.find(|at| bytes[*at..*at + 4] == PT_INTERP.to_le_bytes());
    // Debian has no program of the driver that is linked statically.
    let at = interpreter.unwrap();
    let offset = bytes.len() as u64;
    bytes[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
    bytes[at + 32..at + 40].copy_from_slice(&(loader.len() as u64).to_le_bytes());
    bytes.extend(loader.bytes());
    bytes
}

// === Talos ===

fn talos(kit: &Kit, tree: &Tree) {
    let glibc = "usr/local/glibc";
    let lib = "usr/local/glibc/usr/lib";
    tree.parts(kit, Part::Library, lib)
        .sonames(lib)
        .write(format!("{lib}/libc.so.6"), decoys::stub("libc.so.6"))
        .link(format!("{glibc}/lib"), "usr/lib/")
        .link(format!("{glibc}/lib64"), "usr/lib/")
        .link(format!("{glibc}/usr/lib64"), "lib/")
        .parts(kit, Part::Vdpau, &format!("{lib}/vdpau"))
        .sonames(&format!("{lib}/vdpau"))
        .parts(kit, Part::XDriver, &format!("{lib}/nvidia/xorg"))
        .parts(kit, Part::XExtension, &format!("{lib}/nvidia/xorg"))
        .link(
            format!("{lib}/gbm/nvidia-drm_gbm.so"),
            "../libnvidia-allocator.so.1",
        );
    decoys::glvnd(tree, lib);
    of_talos(kit, tree);
    let cache = "usr/local/glibc/etc/ld.so.cache";
    if !tree.ldconfig(cache, &["/usr/local/glibc/usr/lib"]) {
        skip(
            "a node of Talos",
            "its loader's cache takes ldconfig, and root",
        );
    }
}

fn talos_1_13(kit: &Kit, tree: &Tree) {
    let lib = "usr/local/lib";
    let modules = "usr/local/lib/xorg/modules";
    tree.parts(kit, Part::Library, lib)
        .sonames(lib)
        .write(format!("{lib}/libc.so.6"), decoys::stub("libc.so.6"))
        .link("usr/local/lib64", "lib/")
        .parts(kit, Part::Vdpau, &format!("{lib}/vdpau"))
        .sonames(&format!("{lib}/vdpau"))
        .parts(kit, Part::XDriver, &format!("{modules}/drivers"))
        .parts(kit, Part::XExtension, &format!("{modules}/extensions"))
        .link(
            format!("{modules}/extensions/libglxserver_nvidia.so"),
            format!("libglxserver_nvidia.so.{}", kit.version),
        )
        .parts(kit, Part::Optix, "usr/local/share/nvidia")
        .link(
            format!("{lib}/gbm/nvidia-drm_gbm.so"),
            "../libnvidia-allocator.so.1",
        )
        .link("usr/bin/nvidia-smi", "/usr/local/bin/nvidia-smi");
    decoys::glvnd(tree, lib);
    of_talos(kit, tree);
    if !tree.ldconfig("etc/ld.so.cache", &["/usr/local/lib"]) {
        skip(
            "a node of Talos 1.13",
            "its loader's cache takes ldconfig, and root",
        );
    }
}

/// What is the same in all versions.
fn of_talos(kit: &Kit, tree: &Tree) {
    let firmware = format!("usr/lib/firmware/nvidia/{}", kit.version);
    tree.parts(kit, Part::Program, "usr/local/bin")
        .parts(kit, Part::Firmware, &firmware)
        .parts(kit, Part::VulkanIcd, "etc/vulkan/icd.d")
        .parts(kit, Part::VulkanLayer, "etc/vulkan/implicit_layer.d")
        .parts(kit, Part::EglVendor, "usr/share/glvnd/egl_vendor.d")
        .parts(
            kit,
            Part::EglPlatform,
            "usr/share/egl/egl_external_platform.d",
        );
    distributions::merged(tree);
}

// === Others ===

fn bottlerocket(kit: &Kit, tree: &Tree) {
    const NOT_IN_IT: [&str; 3] = [
        "libnvidia-egl-",
        "libnvidia-gtk",
        "libnvidia-wayland-client",
    ];
    let system = format!(
        "{}-bottlerocket-linux-gnu/sys-root/usr",
        std::env::consts::ARCH
    );
    let below = |sub: &str| format!("{system}/{sub}");
    let tesla = below("lib/nvidia/tesla");
    for file in kit.parts(Part::Library) {
        if !NOT_IN_IT.iter().any(|start| file.name.starts_with(start)) {
            tree.part(file, &tesla);
        }
    }
    tree.parts(kit, Part::Vdpau, &tesla).sonames(&tesla);
    for file in kit.parts(Part::Program) {
        match file.name.as_str() {
            "nvidia-debugdump" | "nvidia-persistenced" | "nvidia-smi" => {
                tree.part(file, &below("libexec/nvidia/tesla/bin"));
            }
            "nvidia-modprobe" => {
                tree.part(file, &below("bin"));
            }
            _ => {}
        }
    }
    let firmware = below(&format!("lib/firmware/nvidia/{}", kit.version));
    tree.parts(kit, Part::Firmware, &firmware)
        .link("usr", format!("./{system}"))
        .link("lib", format!("./{system}/lib"))
        .link("lib64", format!("./{system}/lib"))
        .link(below("lib64"), "lib")
        .link("bin", "./usr/bin");
    decoys::glvnd(tree, &tesla);
    if !tree.ldconfig("etc/ld.so.cache", &[&format!("/{tesla}/")]) {
        skip(
            "a node of Bottlerocket",
            "its loader's cache takes ldconfig, and root",
        );
    }
}

fn flatcar(kit: &Kit, tree: &Tree) {
    let installation = format!("{}/6.6.95-flatcar", kit.version);
    let lib64 = format!("opt/nvidia/{installation}/usr/lib64");
    distributions::merged(tree);
    tree.parts(kit, Part::Library, &lib64)
        .parts(kit, Part::Vdpau, &lib64)
        .parts(kit, Part::XExtension, &lib64)
        .parts(kit, Part::Program, "opt/bin")
        .link("opt/nvidia/current", &installation);
    decoys::glvnd(tree, &lib64);
    // Before an update of the system.
    let before = format!("opt/nvidia/{}/6.6.83-flatcar/usr/lib64", kit.version);
    let again = ["libcuda", "libnvidia-ml"].map(|stem| format!("{stem}.so.{}", kit.version));
    for file in kit
        .parts(Part::Library)
        .filter(|file| again.contains(&file.name))
    {
        tree.place(&file.real, Path::new(&before).join(&file.name));
    }
    let current = "/opt/nvidia/current/usr/lib64";
    if !tree.ldconfig("etc/ld.so.cache", &[current]) {
        // It is ldconfig that makes the links there.
        tree.sonames(&lib64);
        skip(
            "a node of Flatcar",
            "its loader's cache takes ldconfig, and root",
        );
    }
}
